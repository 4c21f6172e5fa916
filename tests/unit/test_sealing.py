"""Sealing: what is stored, what can be read with and without the keys, and what is reported as damaged."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given as for_all
from hypothesis import strategies as st
from msgspec import structs

from eventstore import codec, sealing
from eventstore.errors import UnreadableEvent
from eventstore.events import (
    ERASED,
    EmailReceived,
    EmailUpdated,
    MessageSent,
    RequestAnswered,
    SubjectForgotten,
)
from eventstore.keys import Key, Keyring
from eventstore.recorded import Recorded
from eventstore.sealing import PERSONAL, key_of, needs_revealing, reveal, reveal_event
from tests.unit import strategies
from tests.unit.examples import EXAMPLES
from tests.unit.stories import START

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent

GOLDEN = Path(__file__).parent.parent / "golden" / "sealed"
"""`<type>.v<schema version>.json`: stored text, sealed with `KEY` and `NONCE`. Never changed."""

KEY = Key("0198c0de-0000-7000-8000-00000000000a", bytes(range(32)))
OTHER_KEY = Key("0198c0de-0000-7000-8000-00000000000b", bytes(range(32, 64)))
NONCE = bytes(range(100, 112))
ID, OTHER_ID = "0198c0de-0000-7000-8000-00000000000c", "0198c0de-0000-7000-8000-00000000000d"

SEALED_EXAMPLES = [event for event in EXAMPLES if event.type in PERSONAL and event.type != "email_updated"]
SEALED_EXAMPLES.append(
    EmailUpdated(
        email_id=ID,
        category="sales",
        status="draft_created",
        handled_by="email_agent",
        payload={"draft": "Dear Zoë,\n"},
        changed=["payload"],
    )
)
LETTER = EmailReceived(
    email_id=ID,
    gmail_message_id="g-1",
    from_email="zoe@example.org",
    subject="A secret",
    category="sales",
    status="unread",
    handled_by=None,
    payload={"text": "very secret"},
)
ANSWER = RequestAnswered(
    key="k",
    fingerprint="of the whole",
    status=201,
    body={"id": ID, "from_email": "zoe@example.org", "subject": None, "payload": {"n": 1}, "position": 7},
)


class NoConnection:
    """A connection that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the connection is used: {name}")


NO_CONNECTION = cast("Connection", NoConnection())


def plain(event: AnyEvent, id_: str = ID) -> Recorded:
    """The event as it is stored without encryption."""
    return Recorded(
        1,
        id_,
        event.stream,
        1,
        event.type,
        event.schema_version,
        codec.encode(event),
        "x",
        None,
        "x",
        None,
        START,
        bytes(32),
    )


def sealed(event: AnyEvent, id_: str = ID, key: Key = KEY) -> Recorded:
    """The event as it is stored with encryption."""
    text = sealing.seal(event, id_, key, NONCE, {"fingerprint": "bare"})
    return plain(event, id_)._replace(data=text)


def with_seal(row: Recorded, value: object) -> Recorded:
    return row._replace(data=json.dumps({**json.loads(row.data), "sealed": value}, separators=(",", ":")))


def boxed(event: AnyEvent, content: object) -> Recorded:
    """The event with a box of other content, encrypted with its key."""
    row = sealed(event)
    covered = f"{row.id}\n{row.stream}\n{row.type}\n{row.schema_version}\n{KEY.id}\n".encode()
    box = AESGCM(KEY.secret).encrypt(NONCE, json.dumps(content).encode(), covered)
    seal = json.loads(row.data)["sealed"]
    return with_seal(row, {**seal, "box": b64encode(box).decode()})


def keyring(*keys: Key) -> Keyring:
    ring = Keyring()
    ring.put(keys)
    return ring


class TestGoldenFiles:
    @pytest.mark.parametrize("event", SEALED_EXAMPLES, ids=lambda event: event.type)
    def test_stored_bytes_are_those_of_the_golden_files(self, event: AnyEvent) -> None:
        stored = (GOLDEN / f"{event.type}.v{event.schema_version}.json").read_text(encoding="utf-8")
        assert sealed(event).data + "\n" == stored

    @pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
    def test_events_of_every_schema_version_are_readable_with_the_key(self, path: Path) -> None:
        type_, version, _ = path.name.split(".")
        event = next(event for event in SEALED_EXAMPLES if event.type == type_)
        stored = path.read_text(encoding="utf-8").removesuffix("\n")
        row = plain(event)._replace(data=stored, schema_version=int(version[1:]))
        assert codec.decode(reveal_event(row, {KEY.id: KEY.secret})) == event

    def test_golden_files_cover_every_type_that_is_sealed(self) -> None:
        kinds = {path.name.split(".")[0] for path in GOLDEN.iterdir()}
        assert kinds == PERSONAL.keys()


class TestRoundTrip:
    @for_all(event=strategies.sealed_events)
    def test_event_is_restored_exactly(self, event: AnyEvent) -> None:
        again = reveal_event(sealed(event), {KEY.id: KEY.secret})
        assert codec.decode(again) == event
        assert json.loads(again.data) == json.loads(codec.encode(event))
        assert list(json.loads(again.data)) == list(json.loads(codec.encode(event)))

    @for_all(event=strategies.sealed_events)
    def test_envelope_is_unchanged(self, event: AnyEvent) -> None:
        stored = sealed(event)
        assert reveal_event(stored, {KEY.id: KEY.secret})._replace(data="") == stored._replace(data="")

    @for_all(event=strategies.sealed_events)
    def test_stored_text_is_a_single_line(self, event: AnyEvent) -> None:
        assert not any(character < " " for character in sealed(event).data)

    @for_all(event=strategies.sealed_events)
    def test_event_without_its_key_keeps_all_but_its_personal_fields(self, event: AnyEvent) -> None:
        erased = codec.decode(reveal_event(sealed(event), {}))
        left = [name for name in event.__struct_fields__ if name not in PERSONAL[event.type]]
        assert all(getattr(erased, name) == getattr(event, name) for name in left)

    @for_all(text=st.text("abcdefgh", min_size=12, max_size=40))
    def test_stored_text_contains_no_personal_data(self, text: str) -> None:
        letter = structs.replace(LETTER, from_email=text, subject=text, payload={text: text})
        answer = structs.replace(
            ANSWER, body={**ANSWER.body, "from_email": text, "subject": text, "payload": {text: 1}}
        )
        assert text not in sealed(letter).data
        assert text not in sealed(answer).data
        assert text not in sealed(structs.replace(answer, fingerprint=text)).data


class TestSealing:
    @pytest.mark.parametrize("payload", [{"a": "b\0c"}, {"a": [{"\0": 1}]}, {"a": {"b": ["\0"]}}])
    def test_event_that_contains_nul_is_rejected(self, payload: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"holds U\+0000"):
            sealed(structs.replace(LETTER, payload=payload))

    def test_text_that_looks_like_an_escaped_nul_is_accepted(self) -> None:
        letter = structs.replace(LETTER, subject="\\u0000")
        assert codec.decode(reveal_event(sealed(letter), {KEY.id: KEY.secret})) == letter


class TestErased:
    def test_erased_email_has_no_sender_subject_or_payload(self) -> None:
        erased = codec.decode(reveal_event(sealed(LETTER), {}))
        assert erased == structs.replace(LETTER, from_email=ERASED, subject=None, payload=None)

    def test_erased_message_has_a_placeholder_and_no_data(self) -> None:
        message = MessageSent(
            message_id=ID, agent="ann", to_agent="bob", message="m", task_id="t", data={"n": 1}
        )
        erased = codec.decode(reveal_event(sealed(message), {}))
        assert erased == structs.replace(message, message=ERASED, data=None)

    def test_erased_answer_keeps_its_shape_and_a_bare_fingerprint(self) -> None:
        erased = codec.decode(reveal_event(sealed(ANSWER), {}))
        body = {**ANSWER.body, "from_email": ERASED, "payload": None}
        assert erased == structs.replace(ANSWER, fingerprint="bare", body=body)

    def test_erased_answer_without_personal_data_keeps_its_body(self) -> None:
        answer = structs.replace(ANSWER, body={"id": ID, "position": 7})
        erased = codec.decode(reveal_event(sealed(answer), {}))
        assert erased == structs.replace(answer, fingerprint="bare")


class TestBox:
    def test_box_does_not_open_with_another_key(self) -> None:
        with pytest.raises(UnreadableEvent, match="the box of email_received at position 1"):
            reveal_event(sealed(LETTER), {KEY.id: OTHER_KEY.secret})

    @pytest.mark.parametrize(
        "changes",
        [
            {"id": OTHER_ID},
            {"stream": f"email-{OTHER_ID}"},
            {"schema_version": 2},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_box_does_not_open_in_another_event(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UnreadableEvent):
            reveal_event(sealed(LETTER)._replace(**changes), {KEY.id: KEY.secret})

    def test_box_of_another_event_of_the_same_sender_does_not_open(self) -> None:
        one, other = sealed(LETTER), sealed(LETTER, OTHER_ID)
        swapped = with_seal(one, json.loads(other.data)["sealed"])
        with pytest.raises(UnreadableEvent):
            reveal_event(swapped, {KEY.id: KEY.secret})

    def test_box_does_not_open_under_another_key_id(self) -> None:
        renamed = with_seal(
            sealed(LETTER), {**json.loads(sealed(LETTER).data)["sealed"], "key": OTHER_KEY.id}
        )
        with pytest.raises(UnreadableEvent):
            reveal_event(renamed, {OTHER_KEY.id: KEY.secret})

    @pytest.mark.parametrize(
        "seal",
        [
            None,
            1,
            [],
            {},
            {"key": KEY.id},
            {"key": "no id", "nonce": "AAAA", "box": "AAAA"},
            {"key": None, "nonce": "AAAA", "box": "AAAA"},
            {"key": KEY.id, "nonce": 1, "box": "AAAA"},
            {"key": KEY.id, "nonce": "A", "box": "AAAA"},
            {"key": KEY.id, "nonce": "", "box": ""},
            {"key": KEY.id, "nonce": "AAAA", "box": "AAAA"},
        ],
        ids=str,
    )
    def test_malformed_seal_is_reported(self, seal: object) -> None:
        with pytest.raises(UnreadableEvent, match="email_received at position 1"):
            reveal_event(with_seal(plain(LETTER), seal), {KEY.id: KEY.secret})

    @pytest.mark.parametrize(
        "content",
        [
            [1],
            None,
            "text",
            {"from_email": "a@b.c", "subject": None, "payload": None, "email_id": OTHER_ID},
        ],
        ids=str,
    )
    def test_box_with_malformed_content_is_reported(self, content: object) -> None:
        with pytest.raises(UnreadableEvent, match="the box of email_received at position 1") as error:
            reveal_event(boxed(LETTER, content), {KEY.id: KEY.secret})
        assert error.value.position == 1

    @pytest.mark.parametrize(
        "body",
        [None, [], "text", {"from_email": "a@b.c", "position": 8}],
        ids=lambda body: json.dumps(body),
    )
    def test_box_of_an_answer_with_malformed_or_public_content_is_reported(self, body: object) -> None:
        with pytest.raises(UnreadableEvent, match="the box of request_answered at position 1"):
            reveal_event(boxed(ANSWER, {"fingerprint": "f", "body": body}), {KEY.id: KEY.secret})

    @pytest.mark.parametrize("data", ["null", "[]", "1", '"sealed"', '["sealed"]'])
    def test_data_that_is_not_an_object_is_not_sealed(self, data: str) -> None:
        row = plain(LETTER)._replace(data=data)
        assert reveal_event(row, {}) is row
        assert key_of(row) is None


class TestRevealing:
    def test_only_sealed_events_and_forgetting_need_revealing(self) -> None:
        forgotten = SubjectForgotten(key_id=KEY.id, emails=[ID], messages=[], in_plain=0)
        for row in (sealed(LETTER), sealed(ANSWER), plain(forgotten)):
            assert needs_revealing([plain(LETTER), row])
        assert not needs_revealing([plain(event) for event in EXAMPLES if event.type != forgotten.type])
        assert not needs_revealing([])

    @pytest.mark.parametrize("data", ["[]", "{}", "null", "{", '{"key_id": 1}', '{"key_id": ["a"]}'])
    async def test_malformed_forgetting_is_reported(self, data: str) -> None:
        forgotten = SubjectForgotten(key_id=KEY.id, emails=[ID], messages=[], in_plain=0)
        with pytest.raises(UnreadableEvent, match="subject_forgotten at position 1") as error:
            await reveal(NO_CONNECTION, [plain(forgotten)._replace(data=data)])
        assert error.value.position == 1

    async def test_page_without_sealed_events_is_returned_unchanged(self) -> None:
        page = [plain(event) for event in EXAMPLES if event.type != SubjectForgotten.type]
        assert await reveal(NO_CONNECTION, page) is page

    async def test_payload_that_looks_like_a_seal_is_not_taken_for_one(self) -> None:
        seal = json.loads(sealed(LETTER).data)["sealed"]
        letter = plain(structs.replace(LETTER, payload={"sealed": seal}, subject='"sealed":{"key":"'))
        assert await reveal(NO_CONNECTION, [letter]) == [letter]
        assert await reveal(NO_CONNECTION, [sealed(codec.decode(letter))], keyring(KEY)) == [letter]

    async def test_order_and_plain_events_are_unchanged(self) -> None:
        page = [plain(ANSWER), sealed(LETTER), plain(LETTER), sealed(ANSWER, OTHER_ID)]
        shown = await reveal(NO_CONNECTION, tuple(page), keyring(KEY))
        assert [codec.decode(row) for row in shown] == [ANSWER, LETTER, LETTER, ANSWER]

    async def test_no_keys_are_loaded_for_types_that_the_reader_wants_erased(self) -> None:
        [shown] = await reveal(NO_CONNECTION, [sealed(LETTER)], erased_types=(LETTER.type,))
        assert cast("EmailReceived", codec.decode(shown)).from_email == ERASED

    async def test_keys_that_are_not_cached_are_loaded_with_one_query(self) -> None:
        ring, database = keyring(KEY), FakeDatabase({OTHER_KEY.id: OTHER_KEY.secret})
        page = [sealed(LETTER), sealed(LETTER, key=OTHER_KEY), sealed(ANSWER, key=OTHER_KEY)]
        for _ in range(2):
            shown = await reveal(cast("Connection", database), page, ring)
            assert [codec.decode(row) for row in shown] == [LETTER, LETTER, ANSWER]
        assert database.queries == [[OTHER_KEY.id]]

    async def test_key_that_the_page_destroys_is_removed_from_the_cache(self) -> None:
        ring, database = keyring(KEY), FakeDatabase({})
        forgotten = SubjectForgotten(key_id=KEY.id, emails=[ID], messages=[], in_plain=0)
        before, last = await reveal(cast("Connection", database), [sealed(LETTER), plain(forgotten)], ring)
        assert cast("EmailReceived", codec.decode(before)).from_email == ERASED
        assert codec.decode(last) == forgotten
        assert database.queries == [[KEY.id]]

    @pytest.mark.parametrize("remove", [lambda ring: ring.remove(KEY.id), Keyring.clear])
    async def test_key_destroyed_while_it_is_loaded_is_never_returned(
        self, remove: Callable[[Keyring], None]
    ) -> None:
        ring = Keyring()

        class DestroyedMeanwhile(FakeDatabase):
            async def execute(self, query: str, parameters: Sequence[Any], **_: Any) -> FakeCursor:
                answer = await super().execute(query, parameters)
                if self.secrets:
                    self.secrets.clear()
                    remove(ring)
                return answer

        database = cast("Connection", DestroyedMeanwhile({KEY.id: KEY.secret}))
        assert await ring.secrets(database, [KEY.id]) == {}
        assert await ring.secrets(database, [KEY.id]) == {}


class TestKeyring:
    async def test_keyring_evicts_the_least_recently_used_key(self) -> None:
        ring, database = Keyring(most=2), FakeDatabase({})
        first, second, third = (Key(str(number), bytes(32)) for number in range(3))
        ring.put([first, second])
        assert await ring.secrets(NO_CONNECTION, [first.id]) == {first.id: bytes(32)}
        ring.put([third])
        assert await ring.secrets(NO_CONNECTION, [first.id, third.id])
        assert await ring.secrets(cast("Connection", database), [second.id]) == {}

    async def test_clear_removes_every_key(self) -> None:
        ring = keyring(KEY)
        ring.clear()
        assert await ring.secrets(cast("Connection", FakeDatabase({})), [KEY.id]) == {}

    def test_repr_of_a_key_hides_its_secret(self) -> None:
        assert "\\x1f" not in repr(KEY)


class FakeCursor:
    def __init__(self, rows: list[tuple[str, bytes]]) -> None:
        self._rows = rows

    async def fetchall(self) -> list[tuple[str, bytes]]:
        return self._rows


class FakeDatabase:
    """A database that has only keys."""

    def __init__(self, secrets: dict[str, bytes]) -> None:
        self.secrets = secrets
        self.queries: list[list[str]] = []

    async def execute(self, query: str, parameters: Sequence[Any], **_: Any) -> FakeCursor:
        del query
        [ids] = parameters
        self.queries.append(sorted(ids))
        return FakeCursor([(id_, self.secrets[id_]) for id_ in ids if id_ in self.secrets])

"""What is personal in an event, sealed where it is stored and revealed where it is read.

A sealed event is stored with what is personal in it set to null, and beside it, as its last member,

    "sealed": {"key": <id of the key>, "nonce": <base64>, "box": <base64>}

The box is AES-256-GCM over the compact JSON of what is missing; its associated data are the event's id,
stream, type, schema version and key, each followed by a line feed, so that no box opens in another event.
The hash chain covers the stored text, so it can be followed with the keys, without them, and after they are
gone.

`reveal` is the one place that makes events readable again. Where a key is gone, so is what it sealed: what
must be a text becomes `ERASED`, everything else stays null. A box that does not open with its key is not
forgotten, it is damaged, and whoever reads it is told.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import structs

from eventstore import codec
from eventstore.errors import UnreadableEvent
from eventstore.events import (
    ERASED,
    EmailReceived,
    EmailUpdated,
    MessageSent,
    RequestAnswered,
    SubjectForgotten,
)
from eventstore.ids import ID
from eventstore.keys import Keyring

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent
    from eventstore.keys import Key
    from eventstore.recorded import AnyRecorded, Recorded

NONCE_BYTES = 12
_NONCE_CHARACTERS = 16

PERSONAL: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        MessageSent.type: {"message": (), "data": ()},
        EmailReceived.type: {"from_email": (), "subject": (), "payload": ()},
        EmailUpdated.type: {"payload": ()},
        RequestAnswered.type: {"fingerprint": (), "body": ("from_email", "subject", "payload")},
    }
)
"""What is sealed, by type of event: whole fields, or the members named of one that is an object.

Names are those of the stored data, at every schema version that there ever was; none was renamed so far.
"""

VEILED = frozenset({MessageSent.type, RequestAnswered.type})
"""What the decision state remembers nothing of: it is folded without asking for keys."""

_TEXTS = frozenset({"message", "from_email"})
"""Those of them that cannot be null. A fingerprint has something else in its place, see `seal`."""

_LOOKED_AT = frozenset({*PERSONAL, SubjectForgotten.type})
_LOOKS_SEALED = '"sealed":{"key":"'


class _Seal(NamedTuple):
    """What `sealed` holds."""

    key: str
    nonce: bytes
    box: bytes


def seal(
    event: AnyEvent, id_: str, key: Key, nonce: bytes, instead: Mapping[str, str] = MappingProxyType({})
) -> str:
    """An event's stored text.

    Args:
        event: of a type in `PERSONAL`.
        id_: its id in the log.
        key: whose key.
        nonce: `NONCE_BYTES` random bytes, never used with this key before.
        instead: what stands in the place of a sealed field, where that is not null.

    Raises:
        ValueError: there is a U+0000 in it, which the log would refuse in the open, and no table can hold.
    """
    data = _as_json(event)
    box: dict[str, Any] = {}
    for name, members in PERSONAL[event.type].items():
        if members:
            whole = data[name]
            box[name] = {member: whole[member] for member in members if member in whole}
            whole.update(dict.fromkeys(box[name]))
        else:
            box[name] = data[name]
            data[name] = instead.get(name)
    content = orjson.dumps(box)
    if holds_nul(content.decode()):
        raise ValueError(f"a {event.type} holds U+0000")
    envelope = _envelope(id_, event.stream, event.type, event.schema_version, key.id)
    sealed = AESGCM(key.secret).encrypt(nonce, content, envelope)
    # A nonce's bytes are a multiple of three, so its base64 ends where that of the box begins.
    text = b2a_base64(nonce + sealed, newline=False).decode()
    return (
        f'{orjson.dumps(data).decode()[:-1]},{_LOOKS_SEALED}{key.id}","nonce":"{text[:_NONCE_CHARACTERS]}",'
        f'"box":"{text[_NONCE_CHARACTERS:]}"}}}}'
    )


async def reveal(
    connection: Connection,
    page: Sequence[Recorded],
    keyring: Keyring | None = None,
    *,
    veiled: Collection[str] = (),
) -> list[Recorded]:
    """The same events with readable data: plain where the key is there, erased where it is gone.

    Everything but `data` is as it was, so `hash` still speaks of the stored text. Events that are not
    sealed come back as they are, and a page without any costs a look at each.

    Args:
        connection: to ask for keys that are not at hand, all in one query.
        page: as they are stored.
        keyring: keys at hand; it lets go of those that the page says were destroyed. Without it the
            database has the word, which is right for readers who do not follow the log.
        veiled: types whose erased form will do.

    Raises:
        UnreadableEvent: a box does not open with its key or holds what no box does, or what should be a
            seal, or the end of a key, is none.
    """
    keyring = keyring or Keyring()
    sealed: list[tuple[int, dict[str, Any], _Seal]] = []
    for index, recorded in enumerate(page):
        if recorded.type not in _LOOKED_AT:
            continue
        if recorded.type == SubjectForgotten.type:
            keyring.let_go(_destroyed(recorded))
        elif _LOOKS_SEALED in recorded.data and (found := _unseal(recorded)):
            sealed.append((index, *found))
    shown = page if isinstance(page, list) else list(page)
    if not sealed:
        return shown
    wanted = {seal_.key for index, _, seal_ in sealed if page[index].type not in veiled}
    secrets = await keyring.secrets(connection, wanted) if wanted else {}
    shown = list(shown)
    for index, data, seal_ in sealed:
        shown[index] = _opened(page[index], data, seal_, secrets.get(seal_.key))
    return shown


def concerns_keys(page: Sequence[AnyRecorded]) -> bool:
    """Whether `reveal` would have anything to do."""
    for recorded in page:
        if recorded.type in _LOOKED_AT and (
            _LOOKS_SEALED in recorded.data or recorded.type == SubjectForgotten.type
        ):
            return True
    return False


def may_be_sealed(recorded: Recorded) -> bool:
    """Whether it is worth a closer look: False for nearly every event that is not sealed."""
    return recorded.type in PERSONAL and _LOOKS_SEALED in recorded.data


def opened(recorded: Recorded, secrets: Mapping[str, bytes]) -> Recorded:
    """One event with readable data, for whoever has the keys in hand, by id.

    Raises:
        UnreadableEvent: as `reveal`.
    """
    found = _unseal(recorded) if recorded.type in PERSONAL else None
    if found is None:
        return recorded
    return _opened(recorded, *found, secrets.get(found[1].key))


def holds_nul(data: str) -> bool:
    """Whether there is a U+0000 in it, in what is JSON as it is stored."""
    return "\\u0000" in data and _holds_nul(orjson.loads(data))


def key_of(recorded: Recorded) -> str | None:
    """The id of the key that an event is sealed with; None where it is stored in plain."""
    found = _unseal(recorded) if recorded.type in PERSONAL else None
    return found[1].key if found else None


def _destroyed(recorded: Recorded) -> str:
    """The id of the key whose end an event tells."""
    data = _stored(recorded)
    key_id = data.get("key_id") if isinstance(data, dict) else None
    if not isinstance(key_id, str):
        raise _unreadable(recorded, recorded.type)
    return key_id


def _stored(recorded: Recorded) -> Any:
    try:
        return orjson.loads(recorded.data)
    except ValueError as error:
        raise _unreadable(recorded, recorded.type) from error


def _unreadable(recorded: Recorded, what: str) -> UnreadableEvent:
    return UnreadableEvent(f"{what} at position {recorded.position}", recorded.position)


def _unseal(recorded: Recorded) -> tuple[dict[str, Any], _Seal] | None:
    """The stored data without their seal, and the seal; None where there is none."""
    data = _stored(recorded)
    # A plain event can hold something of that name further down, in what somebody sent.
    if not isinstance(data, dict) or "sealed" not in data:
        return None
    try:
        value = data.pop("sealed")
        seal_ = _Seal(value["key"], a2b_base64(value["nonce"]), a2b_base64(value["box"]))
        is_named = bool(ID.fullmatch(seal_.key))
    except (KeyError, TypeError, ValueError, Base64Error):
        is_named = False
    if not is_named:
        raise _unreadable(recorded, f"the seal of {recorded.type}")
    return data, seal_


def _opened(recorded: Recorded, data: dict[str, Any], seal_: _Seal, secret: bytes | None) -> Recorded:
    if secret is None:
        _erase(recorded.type, data)
    else:
        envelope = _envelope(
            recorded.id, recorded.stream, recorded.type, recorded.schema_version, seal_.key
        )
        try:
            box = orjson.loads(AESGCM(secret).decrypt(seal_.nonce, seal_.box, envelope))
        except (InvalidTag, ValueError) as error:
            raise _unreadable(recorded, f"the box of {recorded.type}") from error
        if not _may_hold(recorded.type, box):
            raise _unreadable(recorded, f"the box of {recorded.type}")
        for name, value in box.items():
            # What is sealed in whole left null behind, what is sealed in part left an object.
            if isinstance(left := data.get(name), dict):
                left.update(value)
            else:
                data[name] = value
    return recorded._replace(data=orjson.dumps(data).decode())


def _may_hold(type_: str, box: Any) -> bool:
    """Whether it is what `seal` puts into a box: nothing that stands in the open can be in one as well."""
    personal = PERSONAL[type_]
    return (
        isinstance(box, dict)
        and box.keys() <= personal.keys()
        and all(
            isinstance(inside, dict) and inside.keys() <= set(personal[name])
            for name, inside in box.items()
            if personal[name]
        )
    )


def _erase(type_: str, data: dict[str, Any]) -> None:
    for name, members in PERSONAL[type_].items():
        place = data.get(name) if members else data
        for text in _TEXTS.intersection(members or (name,)):
            if isinstance(place, dict) and text in place:
                place[text] = ERASED


def _as_json(event: AnyEvent) -> dict[str, Any]:
    """Its data, to be changed."""
    if isinstance(event, RequestAnswered):
        # Its body is whatever was answered, moments among it.
        data: dict[str, Any] = orjson.loads(codec.encode(event))
        return data
    # The others hold nothing that is not JSON as it is.
    return structs.asdict(event)


def _envelope(id_: str, stream: str, type_: str, schema_version: int, key_id: str) -> bytes:
    return f"{id_}\n{stream}\n{type_}\n{schema_version}\n{key_id}\n".encode()


def _holds_nul(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_holds_nul(key) or _holds_nul(item) for key, item in value.items())
        case list():
            return any(map(_holds_nul, value))
        case _:
            return False

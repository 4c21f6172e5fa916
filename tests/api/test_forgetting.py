"""Forgetting a person: from then on, no process shows any of their data."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from eventstore import lookup
from projections.projector import _TRY_LOCK
from service.cli import cli
from service.database import StartFailed
from tests.api.client import Service, running_service
from tests.api.test_stream import reading
from tests.support.command import squad
from tests.support.components import connected
from tests.support.erasure import find_remains

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.client import Api

ADDRESS = "zoe@example.org"
EMAIL = {
    "gmail_message_id": "g-1",
    "from_email": f"Zoe Smith <{ADDRESS}>",
    "subject": "A complaint",
    "payload": {"text": "so very angry"},
}
MESSAGE = {"from_agent": "ada", "message": "a private word", "data": {"do": "call 030-1234"}}
PERSONAL = ("Zoe Smith", ADDRESS, "A complaint", "so very angry", "a private word", "call 030-1234")
ERASED_EMAIL = {"from_email": "(erased)", "subject": None, "payload": None}
UNKNOWN = "00000000-0000-7000-8000-00000000ffff"


@pytest.fixture
async def service(database: str) -> AsyncIterator[Service]:
    """A service that encrypts payloads."""
    async with running_service(database, encrypt_payloads=True) as running:
        yield running


def key(text: str) -> dict[str, str]:
    return {"Idempotency-Key": text}


async def fill(api: Api) -> tuple[str, str]:
    """Send an e-mail and a message, with answers that are stored; return the ids of both."""
    email = (await api.post("emails", key("email"), **EMAIL)).expect(201)
    (await api.patch(f"emails/{email['id']}", payload={"text": "so very angry, still"})).expect(200)
    message = (await api.post("messages", key("message"), **MESSAGE)).expect(201)
    return email["id"], message["id"]


async def forget(api: Api, subject: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Forget somebody, and wait for the read tables."""
    done = (await api.post("subjects/forget", headers, subject=subject)).expect(200)
    for table in ("emails", "messages"):
        (await api.get(table, min_position=done["position"])).expect(200)
    return done


async def everything_readable(api: Api, email_id: str, head: int) -> str:
    """Everything that can be read over HTTP, as one text."""
    paths = ["emails", f"emails/{email_id}", "messages", "agents/bob/inbox", "/api/squad", "/metrics"]
    paths += ["events", *(f"events/{position}" for position in range(1, head + 1))]
    answers = [str((await api.get(path)).body) for path in paths]
    async with reading(api, None, after=0) as reader:
        answers += [str(sent.data) for sent in await reader.take(head)]
    return "\n".join(answers)


async def test_everything_is_readable_before_anybody_is_forgotten(service: Service) -> None:
    email_id, message_id = await fill(service.api)
    readable = await everything_readable(service.api, email_id, await service.head())
    assert all(text in readable for text in PERSONAL)
    email = (await service.api.get(f"emails/{email_id}")).expect(200)
    assert email["payload"] == {"text": "so very angry, still"}
    [message] = (await service.api.get("messages")).expect(200)["items"]
    assert message["id"] == message_id


async def test_personal_data_is_nowhere_readable_after_forgetting(service: Service) -> None:
    api = service.api
    email_id, message_id = await fill(api)
    done = await forget(api, ADDRESS)
    assert {name: done[name] for name in ("emails", "messages", "in_plain")} == {
        "emails": 1,
        "messages": 0,
        "in_plain": 0,
    }
    done = await forget(api, message_id)
    assert (done["emails"], done["messages"]) == (0, 1)
    readable = await everything_readable(api, email_id, done["position"])
    assert not [text for text in PERSONAL if text in readable]
    email = (await api.get(f"emails/{email_id}", min_position=done["position"])).expect(200)
    assert {name: email[name] for name in ERASED_EMAIL} == ERASED_EMAIL
    [message] = (await api.get("messages", min_position=done["position"])).expect(200)["items"]
    assert (message["message"], message["data"]) == ("(erased)", None)
    assert await find_remains(service.dsn, PERSONAL) == []


async def test_other_process_that_had_read_personal_data_does_not_show_it(
    service: Service, database: str
) -> None:
    async with running_service(database) as other:
        email_id, message_id = await fill(service.api)
        head = await service.head()
        await other.api.get("messages", min_position=head)
        assert "a private word" in await everything_readable(other.api, email_id, head)
        await forget(service.api, ADDRESS)
        position = (await forget(service.api, message_id))["position"]
        await other.api.get("events", min_position=position)
        await other.api.get("emails", min_position=position)
        await other.api.get("messages", min_position=position)
        readable = await everything_readable(other.api, email_id, position)
        assert not [text for text in PERSONAL if text in readable]


async def test_streams_show_message_when_sent_and_not_after_forgetting(
    service: Service, database: str
) -> None:
    async with running_service(database) as other:
        async with (
            reading(service.api, None, type="message_sent") as here,
            reading(other.api, None, type="message_sent") as there,
        ):
            message_id = (await service.api.post("messages", **MESSAGE)).expect(201)["id"]
            for reader in (here, there):
                assert (await reader.next()).data["data"]["message"] == "a private word"
        position = (await forget(service.api, message_id))["position"]
        for api in (service.api, other.api):
            await api.get("events", min_position=position)
            async with reading(api, None, after=0, type="message_sent") as reader:
                assert (await reader.next()).data["data"]["message"] == "(erased)"


async def test_event_names_erased_emails_and_not_the_person(service: Service) -> None:
    email_id, _ = await fill(service.api)
    position = (await forget(service.api, ADDRESS))["position"]
    event = (await service.api.get(f"events/{position}")).expect(200)
    assert event["type"] == "subject_forgotten"
    assert event["data"]["emails"] == [email_id]
    assert ADDRESS not in str(event)


async def test_repeated_request_gets_the_first_answer_without_erased_data(
    service: Service,
) -> None:
    api = service.api
    first = (await api.post("emails", key("email"), **EMAIL)).expect(201)
    assert (await api.post("emails", key("email"), **EMAIL)).expect(201) == first
    sent = (await api.post("messages", key("message"), **MESSAGE)).expect(201)
    await forget(api, ADDRESS)
    await forget(api, sent["id"])
    head = await service.head()
    assert (await api.post("emails", key("email"), **EMAIL)).expect(201) == {**first, **ERASED_EMAIL}
    assert (await api.post("messages", key("message"), **MESSAGE)).expect(201) == sent
    assert await service.head() == head
    (await api.post("tasks", key("email"), title="other")).expect(409, "idempotency_mismatch")


async def test_repeated_forgetting_gets_the_first_answer(service: Service) -> None:
    api = service.api
    await fill(api)
    await api.post("emails", **{**EMAIL, "gmail_message_id": "g-2", "from_email": "bob@example.org"})
    first = await forget(api, ADDRESS, key("forget"))
    assert await forget(api, ADDRESS, key("forget")) == first
    another = await api.post("subjects/forget", key("forget"), subject="bob@example.org")
    another.expect(409, "idempotency_mismatch")
    assert "bob@example.org" in str((await api.get("emails")).body)


@pytest.mark.parametrize("subject", ["nobody@example.org", UNKNOWN, "☃", "x" * 1_000])
async def test_unknown_subject_is_not_found(service: Service, subject: str) -> None:
    await fill(service.api)
    head = await service.head()
    answer = await service.api.post("subjects/forget", subject=subject)
    assert subject not in answer.expect(404, "subject_not_found")["detail"]
    assert await service.head() == head


@pytest.mark.parametrize(
    "body", [{}, {"subject": ""}, {"subject": 5}, {"subject": "a", "in_plain": 1}, {"subject": "a\n"}]
)
async def test_request_must_have_one_valid_subject(service: Service, body: dict[str, Any]) -> None:
    (await service.api.post("subjects/forget", **body)).expect(422, "validation_failed")


async def test_sender_who_writes_again_can_be_forgotten_again(service: Service) -> None:
    api = service.api
    await fill(api)
    await forget(api, ADDRESS)
    again = {**EMAIL, "gmail_message_id": "g-2", "subject": "Another one"}
    email = (await api.post("emails", **again)).expect(201)
    shown = (await api.get("emails", min_position=email["position"])).expect(200)["items"]
    assert [item["subject"] for item in shown] == [None, "Another one"]
    assert (await forget(api, ADDRESS))["emails"] == 1
    assert await find_remains(service.dsn, [*PERSONAL[:4], "Another one"]) == []


async def test_logging_an_erased_email_again_restores_nothing(service: Service) -> None:
    await fill(service.api)
    await forget(service.api, ADDRESS)
    (await service.api.post("emails", **EMAIL)).expect(409, "email_exists")
    assert await find_remains(service.dsn, PERSONAL[:4]) == []
    (await service.api.post("subjects/forget", subject=ADDRESS)).expect(404, "subject_not_found")


async def test_erased_email_can_change_status_but_not_get_a_payload(service: Service) -> None:
    api = service.api
    email_id, _ = await fill(api)
    await forget(api, ADDRESS)
    late = await api.patch(f"emails/{email_id}", status="draft_created", payload={"draft": "Dear Zoe"})
    late.expect(409, "email_erased")
    done = (await api.patch(f"emails/{email_id}", status="archived")).expect(200)
    assert done["status"] == "archived"
    assert {name: done[name] for name in ERASED_EMAIL} == ERASED_EMAIL


async def test_sender_cannot_be_the_erasure_mark(service: Service) -> None:
    answer = await service.api.post("emails", **{**EMAIL, "from_email": "(erased)"})
    assert answer.expect(422, "validation_failed")["errors"][0]["field"] == "from_email"


async def test_unencrypted_data_is_kept_and_reported(database: str) -> None:
    async with running_service(database) as plain:
        email_id, message_id = await fill(plain.api)
        answer = await plain.api.post("subjects/forget", subject=ADDRESS)
        assert answer.expect(409, "subject_in_plain")["in_plain"] == 1
        answer = await plain.api.post("subjects/forget", subject=message_id)
        answer.expect(409, "subject_in_plain")
    async with running_service(database, encrypt_payloads=True) as service:
        (await service.api.post("emails", **{**EMAIL, "gmail_message_id": "g-2"})).expect(201)
        done = await forget(service.api, ADDRESS)
        assert (done["emails"], done["in_plain"]) == (1, 1)
        shown = (await service.api.get("emails", min_position=done["position"])).expect(200)["items"]
        assert [item["from_email"] for item in shown] == [EMAIL["from_email"], "(erased)"]
        assert shown[0]["id"] == email_id


async def test_service_log_and_metrics_contain_no_personal_data(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    email_id, message_id = await fill(service.api)
    await service.api.post("emails", **EMAIL)
    await service.api.post("emails", **{**EMAIL, "surplus": 1})
    await service.api.patch(f"emails/{email_id}", payload="so very angry")
    await forget(service.api, ADDRESS)
    await forget(service.api, message_id)
    readable = caplog.text + str((await service.api.get("/metrics")).body)
    assert not [text for text in PERSONAL if text in readable]


class TestBatches:
    def _commands(self, **changes: object) -> list[dict[str, Any]]:
        bodies = (("emails", {**EMAIL, **changes}), ("messages", MESSAGE), ("tasks", {"title": "look"}))
        return [{"method": "POST", "path": f"/api/v1/{path}", "body": body} for path, body in bodies]

    async def _send(self, service: Service, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answer = (await service.api.post("batch", key("b"), commands=commands)).expect(200)
        results: list[dict[str, Any]] = answer["results"]
        return results

    async def test_repeated_batch_gets_the_first_answers(self, service: Service) -> None:
        first = await self._send(service, self._commands())
        assert [result["status"] for result in first] == [201, 201, 201]
        head = await service.head()
        assert await self._send(service, self._commands()) == first
        assert await service.head() == head

    async def test_other_batch_with_the_same_key_is_refused(self, service: Service) -> None:
        await self._send(service, self._commands())
        for changed in (self._commands(subject="Another"), self._commands(category="sales"), []):
            commands = changed or self._commands()[:2]
            answer = await service.api.post("batch", key("b"), commands=commands)
            answer.expect(409, "idempotency_mismatch")

    async def test_repeated_batch_gets_the_first_answers_without_erased_data(
        self, service: Service
    ) -> None:
        first = await self._send(service, self._commands())
        await forget(service.api, ADDRESS)
        again = await self._send(service, self._commands())
        assert again[0]["body"] == {**first[0]["body"], **ERASED_EMAIL}
        assert again[1:] == first[1:]

    async def test_what_is_stored_for_a_command_reveals_nothing_of_the_others(
        self, service: Service
    ) -> None:
        """What is stored for the task is the same, whatever the e-mail in the same batch contains."""

        async def kept(name: str, **changes: object) -> set[str]:
            commands = self._commands(**changes)
            (await service.api.post("batch", key(name), commands=commands)).expect(200)
            async with connected(service.dsn) as connection:
                streams = [f"request-{name}", *(f"request-batch:{n} {name}" for n in range(3))]
                rows = await lookup.read_streams(connection, streams)
            return {json.loads(row.data)["fingerprint"] for row in rows}

        one = await kept("one", gmail_message_id="g-1")
        other = await kept("other", gmail_message_id="g-1", subject="Another", from_email="bob@example.org")
        assert len(one) == 1
        # The second e-mail is refused because it exists, so only the answers to the others are stored.
        assert one == other

    @pytest.mark.parametrize("encrypt_first", [True, False])
    async def test_repeated_batch_is_recognized_after_encryption_is_switched(
        self, database: str, encrypt_first: bool
    ) -> None:
        async with running_service(database, encrypt_payloads=encrypt_first) as one:
            first = await self._send(one, self._commands())
        async with running_service(database, encrypt_payloads=not encrypt_first) as other:
            assert await self._send(other, self._commands()) == first
            changed = await other.api.post("batch", key("b"), commands=self._commands(subject="Another"))
            changed.expect(409, "idempotency_mismatch")


class TestCommand:
    async def test_forgets_beside_running_service(self, service: Service, tmp_path: Path) -> None:
        email_id, message_id = await fill(service.api)
        [line] = (await squad(tmp_path, "forget", ADDRESS, "--dsn", service.dsn)).lines()
        assert line.startswith("forgotten: 1 e-mail (position ")
        [line] = (await squad(tmp_path, "forget", message_id, "--dsn", service.dsn)).lines()
        position = await service.head()
        assert line == f"forgotten: 1 message (position {position})"
        assert (await squad(tmp_path, "forget", message_id, "--dsn", service.dsn)).lines() == [line]
        await service.api.get("events", min_position=position)
        readable = await everything_readable(service.api, email_id, position)
        assert not [text for text in PERSONAL if text in readable]
        assert await find_remains(service.dsn, PERSONAL) == []

    async def test_erases_tables_when_no_service_runs(self, database: str, tmp_path: Path) -> None:
        async with running_service(database, encrypt_payloads=True) as service:
            position = (await service.api.post("emails", **EMAIL)).expect(201)["position"]
            await service.api.get("emails", min_position=position)
        assert set(await find_remains(database, PERSONAL[:4])) == {*PERSONAL[:4]}
        (await squad(tmp_path, "forget", ADDRESS, "--dsn", database)).lines()
        assert await find_remains(database, PERSONAL) == []

    async def test_fails_when_read_tables_are_stuck(
        self, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys.modules["service.cli.forget"], "STUCK_AFTER_SECONDS", 0.5)
        async with running_service(database, encrypt_payloads=True) as service:
            await service.api.post("emails", **EMAIL)
        async with connected(database) as connection:
            # As if another process were the active projector, and had stalled.
            await connection.execute(_TRY_LOCK)
            ended = await asyncio.to_thread(CliRunner().invoke, cli, ["forget", ADDRESS, "--dsn", database])
        assert isinstance(ended.exception, StartFailed)
        assert "but the read tables are stuck at" in str(ended.exception)

    async def test_events_command_does_not_show_erased_data(self, service: Service, tmp_path: Path) -> None:
        await fill(service.api)
        before = await squad(tmp_path, "events", "--dsn", service.dsn)
        assert "so very angry" in before.output
        await squad(tmp_path, "forget", ADDRESS, "--dsn", service.dsn)
        after = await squad(tmp_path, "events", "--json", "--dsn", service.dsn)
        assert not [text for text in PERSONAL[:4] if text in after.output]
        assert len(after.lines()) == await service.head()

    async def test_fails_when_subject_is_unknown_or_invalid(self, service: Service, tmp_path: Path) -> None:
        for subject in ("nobody@example.org", UNKNOWN):
            ended = await squad(tmp_path, "forget", subject, "--dsn", service.dsn)
            assert ended.error_line() == "there is no such sender, and no message with that id"
        ended = await squad(tmp_path, "forget", "", "--dsn", service.dsn)
        assert ended.error_line().startswith("subject is ''")

    async def test_fails_and_reports_emails_that_were_logged_unencrypted(
        self, database: str, tmp_path: Path
    ) -> None:
        async with running_service(database) as plain:
            await fill(plain.api)
        ended = await squad(tmp_path, "forget", ADDRESS, "--dsn", database)
        assert "(1 e-mail) was logged before payloads were encrypted" in ended.error_line()
        async with running_service(database, encrypt_payloads=True) as service:
            await service.api.post("emails", **{**EMAIL, "gmail_message_id": "g-2"})
        ended = await squad(tmp_path, "forget", ADDRESS, "--dsn", database)
        assert ended.code == 1
        assert ended.output.startswith("forgotten: 1 e-mail ")
        assert "1 e-mail of this sender entered the log, in whole or in part" in ended.errors

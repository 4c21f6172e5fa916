"""Commands on the command line that change the squad, with and without a running service."""

from __future__ import annotations

import asyncio
import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from eventstore import codec
from eventstore.events import MessageSent, OperationExpired
from projections.operations import OPERATIONS
from service import commands as do
from service.cli import session as module
from service.cli.session import make_command, open_session
from service.cli.target import Target
from service.database import StartFailed
from service.writing.writer import Writer
from tests.api.client import running_service, unreachable
from tests.support.components import connected, message, running_writer, submit
from tests.support.log import whole_log
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.requests import Outcome, Request
    from tests.api.client import Service
    from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def _working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run where the developer's squad.toml is not found."""
    monkeypatch.chdir(tmp_path)


async def _log(dsn: str) -> list[tuple[Recorded, AnyEvent]]:
    async with connected(dsn) as connection:
        return [(item, codec.decode(item)) for item in await whole_log(connection)]


async def test_actor_is_the_user_who_ran_the_command(database: str) -> None:
    async with running_writer(database):
        pass
    async with open_session(Target(dsn=database)) as session:
        outcome = await session.submit(message("by hand"))
    sent = [item for item, event in await _log(database) if isinstance(event, MessageSent)]
    assert [(item.position, item.actor) for item in sent] == [
        (outcome.position, f"cli:{getpass.getuser()}")
    ]


async def test_each_command_has_its_own_correlation_id(database: str) -> None:
    async with running_writer(database):
        pass
    async with open_session(Target(dsn=database)) as session:
        await session.submit(message("one"))
        await session.submit(message("two"))
    sent = [item for item, event in await _log(database) if isinstance(event, MessageSent)]
    assert len({item.correlation_id for item in sent}) == 2


async def test_refusal_is_reported_in_one_line(database: str) -> None:
    async with running_writer(database):
        pass
    async with open_session(Target(dsn=database)) as session:
        with pytest.raises(StartFailed) as refused:
            await session.submit(do.PauseJob(name="none"))
    assert str(refused.value) == "no job is called 'none'"


def test_invalid_command_is_reported_in_one_line() -> None:
    with pytest.raises(StartFailed) as refused:
        make_command(do.PauseJob, name="no\nsuch\x1b[31m", note="so")
    assert str(refused.value).startswith(r"name is 'no\nsuch\x1b[31m': must be one line of text")
    assert make_command(do.PauseJob, name="daily", note="so") == do.PauseJob(name="daily", note="so")


async def test_running_service_sees_the_change(service: Service) -> None:
    async with open_session(Target(dsn=service.dsn)) as session:
        outcome = await session.submit(message("seen", agent="ada"))
    answer = await service.api.get("messages", min_position=outcome.position)
    assert [item["message"] for item in answer.body["items"]] == ["seen"]


async def test_all_commands_succeed_beside_a_busy_service(service: Service) -> None:
    async def send_messages() -> None:
        for number in range(50):
            await service.api.post("messages", from_agent="busy", message=str(number))

    sending = asyncio.create_task(send_messages())
    async with (
        open_session(Target(dsn=service.dsn)) as one,
        open_session(Target(dsn=service.dsn)) as other,
    ):
        await asyncio.gather(
            *(session.submit(message("hand", agent="cli")) for session in (one, other) for _ in range(20))
        )
    await sending
    by_agent = [event.agent for _, event in await _log(service.dsn) if isinstance(event, MessageSent)]
    assert (by_agent.count("cli"), by_agent.count("busy")) == (40, 50)


async def test_what_is_due_is_decided_before_the_command(database: str) -> None:
    claim = do.StartOperation(agent="ada", action="write", resources={"id": "1"}, ttl_seconds=0.01)
    async with running_writer(database) as writer:
        started = await submit(writer, claim)
    async with open_session(Target(dsn=database)) as session:
        [operation] = session.writer.squad.all(OPERATIONS)
        await eventually(lambda: datetime.now(UTC) > operation.expires_at)
        await session.submit(message("later"))
        assert not list(session.writer.squad.all(OPERATIONS))
    log = await _log(database)
    [expiry] = [item for item, event in log if isinstance(event, OperationExpired)]
    [sent] = [item for item, event in log if isinstance(event, MessageSent)]
    assert started.position is not None
    assert started.position < expiry.position < sent.position
    assert expiry.actor == "system:clock"


async def test_command_fails_with_advice_when_squad_never_started(database: str) -> None:
    async with open_session(Target(dsn=database)) as session:
        with pytest.raises(StartFailed, match="start it once with `squad up`"):
            await session.submit(do.ReserveTokens(agent="early", tokens=1))
    assert await _log(database) == []


async def test_log_that_cannot_be_decoded_is_reported(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_writer(database):
        pass

    def fail(_: object) -> None:
        raise ValueError("from the future")

    monkeypatch.setattr(codec, "decode", fail)
    with pytest.raises(StartFailed, match="at position 1, ValueError: from the future"):
        async with open_session(Target(dsn=database)):
            pass
    assert caplog.records


async def test_lost_database_is_reported_in_one_line(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database):
        pass
    original_submit = Writer.submit

    async def submit_with_short_timeout(writer: Writer, request: Request) -> Outcome:
        return await original_submit(writer, request, 0.5)

    monkeypatch.setattr(Writer, "submit", submit_with_short_timeout)
    async with open_session(Target(dsn=database)) as session:
        with unreachable(postgres, database), pytest.raises(StartFailed) as failed:
            await session.submit(message("into the void"))
    assert str(failed.value).startswith("the database ")
    assert "\n" not in str(failed.value)


def test_actor_is_a_number_when_login_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError("no username set in the environment")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert module.actor().removeprefix("cli:").isdigit()


@pytest.mark.parametrize(
    ("login", "named"),
    [("a\nb", r"cli:a\nb"), ("x\udcff", r"cli:x\udcff"), ("é" * 300, f"cli:{'é' * 100}")],
)
def test_unusual_login_name_is_escaped_and_truncated(
    monkeypatch: pytest.MonkeyPatch, login: str, named: str
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: login)
    assert module.actor() == named


async def test_change_is_seen_by_two_running_services(database: str) -> None:
    async with running_service(database) as one, running_service(database) as other:
        async with open_session(Target(dsn=database)) as session:
            outcome = await session.submit(message("to both", agent="ada"))
        for service in (one, other):
            answer = await service.api.get("messages", min_position=outcome.position)
            assert answer.body["items"][0]["message"] == "to both"

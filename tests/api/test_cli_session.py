"""Commands of the command line that change something, with a service beside them and without."""

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
from tests.support.log import whole_log
from tests.support.parts import connected, message, running_writer, submit
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.requests import Outcome, Request
    from tests.api.client import Service
    from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def _somewhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No squad.toml of ours lies where the commands run."""
    monkeypatch.chdir(tmp_path)


async def _log(dsn: str) -> list[tuple[Recorded, AnyEvent]]:
    async with connected(dsn) as connection:
        return [(item, codec.decode(item)) for item in await whole_log(connection)]


async def test_a_command_acts_in_the_name_of_whoever_typed_it(database: str) -> None:
    async with running_writer(database):
        pass
    async with open_session(Target(dsn=database)) as hand:
        outcome = await hand.submit(message("by hand"))
    sent = [item for item, event in await _log(database) if isinstance(event, MessageSent)]
    assert [(item.position, item.actor) for item in sent] == [
        (outcome.position, f"cli:{getpass.getuser()}")
    ]


async def test_each_command_has_a_correlation_of_its_own(database: str) -> None:
    async with running_writer(database):
        pass
    async with open_session(Target(dsn=database)) as hand:
        await hand.submit(message("one"))
        await hand.submit(message("two"))
    sent = [item for item, event in await _log(database) if isinstance(event, MessageSent)]
    assert len({item.correlation_id for item in sent}) == 2


async def test_a_refusal_is_one_line(database: str) -> None:
    async with running_writer(database):
        pass
    async with open_session(Target(dsn=database)) as hand:
        with pytest.raises(StartFailed) as refused:
            await hand.submit(do.PauseJob(name="none"))
    assert str(refused.value) == "no job is called 'none'"


def test_what_cannot_be_a_command_is_one_line() -> None:
    with pytest.raises(StartFailed) as refused:
        make_command(do.PauseJob, name="no\nsuch\x1b[31m", note="so")
    assert str(refused.value).startswith(r"name is 'no\nsuch\x1b[31m': must be one line of text")
    assert make_command(do.PauseJob, name="daily", note="so") == do.PauseJob(name="daily", note="so")


async def test_a_service_beside_it_sees_what_was_done_at_once(service: Service) -> None:
    async with open_session(Target(dsn=service.dsn)) as hand:
        outcome = await hand.submit(message("seen", agent="ada"))
    answer = await service.api.get("messages", min_position=outcome.position)
    assert [item["message"] for item in answer.body["items"]] == ["seen"]


async def test_commands_beside_a_busy_service_all_get_through(service: Service) -> None:
    async def talk() -> None:
        for number in range(50):
            await service.api.post("messages", from_agent="busy", message=str(number))

    talking = asyncio.create_task(talk())
    async with (
        open_session(Target(dsn=service.dsn)) as one,
        open_session(Target(dsn=service.dsn)) as other,
    ):
        await asyncio.gather(
            *(hand.submit(message("hand", agent="cli")) for hand in (one, other) for _ in range(20))
        )
    await talking
    by_agent = [event.agent for _, event in await _log(service.dsn) if isinstance(event, MessageSent)]
    assert (by_agent.count("cli"), by_agent.count("busy")) == (40, 50)


async def test_what_time_made_happen_is_decided_before_the_command(database: str) -> None:
    claim = do.StartOperation(agent="ada", action="write", resources={"id": "1"}, ttl_seconds=0.01)
    async with running_writer(database) as writer:
        started = await submit(writer, claim)
    async with open_session(Target(dsn=database)) as hand:
        [operation] = hand.writer.squad.all(OPERATIONS)
        await eventually(lambda: datetime.now(UTC) > operation.expires_at)
        await hand.submit(message("later"))
        assert not list(hand.writer.squad.all(OPERATIONS))
    log = await _log(database)
    [expiry] = [item for item, event in log if isinstance(event, OperationExpired)]
    [sent] = [item for item, event in log if isinstance(event, MessageSent)]
    assert started.position is not None
    assert started.position < expiry.position < sent.position
    assert expiry.actor == "system:clock"


async def test_a_squad_that_never_started_says_so(database: str) -> None:
    async with open_session(Target(dsn=database)) as hand:
        with pytest.raises(StartFailed, match="start it once with `squad up`"):
            await hand.submit(do.ReserveTokens(agent="early", tokens=1))
    assert await _log(database) == []


async def test_a_log_that_is_not_understood_says_so(
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


async def test_a_database_that_goes_away_is_one_line(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database):
        pass
    patient = Writer.submit

    async def impatient(writer: Writer, request: Request) -> Outcome:
        return await patient(writer, request, 0.5)

    monkeypatch.setattr(Writer, "submit", impatient)
    async with open_session(Target(dsn=database)) as hand:
        with unreachable(postgres, database), pytest.raises(StartFailed) as failed:
            await hand.submit(message("into the void"))
    assert str(failed.value).startswith("the database ")
    assert "\n" not in str(failed.value)


def test_a_login_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError("no username set in the environment")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert module.actor().removeprefix("cli:").isdigit()


@pytest.mark.parametrize(
    ("login", "named"),
    [("a\nb", r"cli:a\nb"), ("x\udcff", r"cli:x\udcff"), ("é" * 300, f"cli:{'é' * 100}")],
)
def test_a_strange_login_is_named_on_one_line(
    monkeypatch: pytest.MonkeyPatch, login: str, named: str
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: login)
    assert module.actor() == named


async def test_two_services_and_a_hand_agree(database: str) -> None:
    async with running_service(database) as one, running_service(database) as other:
        async with open_session(Target(dsn=database)) as hand:
            outcome = await hand.submit(message("to both", agent="ada"))
        for service in (one, other):
            answer = await service.api.get("messages", min_position=outcome.position)
            assert answer.body["items"][0]["message"] == "to both"

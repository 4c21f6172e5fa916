"""The writer and its callers while the database is unavailable, while it stops, and after a commit."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from eventstore.errors import LogReplaced, StoreBusy, StoreUnavailable
from eventstore.listener import Hints
from eventstore.recorded import Recorded
from service.clock import DatabaseClock
from service.commands import PassTime
from service.requests import Request, Stopping
from service.writing import writer as module
from service.writing.writer import STALLED_AFTER_SECONDS, Writer
from tests.support.wait import eventually
from tests.unit.stories import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

EVENT = Recorded(1, "id", "s", 1, "message_sent", 1, "{}", "actor", None, "c", None, START, b"")


class UnreachableDatabase:
    """A database that fails every attempt to connect, and counts them."""

    def __init__(self) -> None:
        self.attempts = 0
        self.error: Exception = StoreUnavailable("gone")

    async def connect(self, *_: object, **__: object) -> NoReturn:
        self.attempts += 1
        raise self.error


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> UnreachableDatabase:
    database = UnreachableDatabase()
    monkeypatch.setattr(module, "connect", database.connect)
    monkeypatch.setattr(module, "_BACKOFF_SECONDS", (0.001, 0.001))
    return database


@asynccontextmanager
async def running() -> AsyncIterator[Writer]:
    writer = make_writer()
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.wait((task,))


def make_writer() -> Writer:
    return Writer("", "squad", DatabaseClock(), Hints())


def make_request() -> Request:
    return Request(PassTime(), "ann", "c")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (StoreUnavailable("gone"), "the database cannot be reached"),
        (OSError("no route"), "the database cannot be reached"),
        (StoreBusy("somebody has the lock"), str(StoreBusy("somebody has the lock"))),
        (LogReplaced("it ends at 3"), str(LogReplaced("it ends at 3"))),
        (RuntimeError("a fault of ours"), "a fault of ours"),
    ],
)
async def test_writer_reports_why_nothing_can_be_decided_and_keeps_retrying(
    database: UnreachableDatabase, error: Exception, problem: str
) -> None:
    database.error = error
    async with running() as writer:
        await eventually(lambda: database.attempts > 3)
        assert (writer.problem, writer.ready) == (problem, False)


async def test_waiting_commands_fail_when_the_writer_ends(database: UnreachableDatabase) -> None:
    async with running() as writer:
        outcomes = writer.put_all([make_request(), make_request()])
        await eventually(lambda: database.attempts)
    for outcome in outcomes:
        assert isinstance(outcome.exception(), Stopping)


async def test_command_that_arrives_while_the_writer_stops_fails_at_once() -> None:
    writer = make_writer()
    await writer.drain()
    assert isinstance(writer.put(make_request()).exception(), Stopping)


async def test_writer_is_stalled_once_commands_have_waited_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    writer = make_writer()
    assert not writer.is_stalled
    outcomes = [writer.put(make_request())]
    now[0] += STALLED_AFTER_SECONDS
    outcomes.append(writer.put(make_request()))
    assert not writer.is_stalled
    now[0] += 0.001
    assert writer.is_stalled
    writer.fail_waiting()
    assert not writer.is_stalled
    assert all(isinstance(outcome.exception(), Stopping) for outcome in outcomes)


async def test_observer_that_fails_does_not_affect_the_others() -> None:
    writer, seen = make_writer(), list[Any]()

    def fail(recorded: Sequence[Recorded]) -> None:
        raise RuntimeError("a fault of the observer")

    writer.observers += [fail, seen.append]
    writer.on_known.append(lambda recorded, events: seen.append("known"))
    waiter = writer.advanced.waiter()
    writer._publish([EVENT], [])
    assert seen == [[EVENT]]
    assert waiter.is_set()

"""What becomes of a writer and of those who wait for it while there is no database to write to."""

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
from tests.unit.support import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

EVENT = Recorded(1, "id", "s", 1, "message_sent", 1, "{}", "actor", None, "c", None, START, b"")


class Away:
    """A database that cannot be reached, and how often somebody tried."""

    def __init__(self) -> None:
        self.tries = 0
        self.error: Exception = StoreUnavailable("gone")

    async def connect(self, *_: object, **__: object) -> NoReturn:
        self.tries += 1
        raise self.error


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Away:
    away = Away()
    monkeypatch.setattr(module, "connect", away.connect)
    monkeypatch.setattr(module, "_BACKOFF_SECONDS", (0.001, 0.001))
    return away


@asynccontextmanager
async def running() -> AsyncIterator[Writer]:
    writer = a_writer()
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.wait((task,))


def a_writer() -> Writer:
    return Writer("", "squad", DatabaseClock(), Hints())


def a_request() -> Request:
    return Request(PassTime(), "ann", "c")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreUnavailable("gone"), "the database cannot be reached"),
        (OSError("no route"), "the database cannot be reached"),
        (StoreBusy("somebody has the lock"), str(StoreBusy("somebody has the lock"))),
        (LogReplaced("it ends at 3"), str(LogReplaced("it ends at 3"))),
        (RuntimeError("a fault of ours"), "a fault of ours"),
    ],
)
async def test_it_says_why_nothing_can_be_decided_and_goes_on_trying(
    away: Away, error: Exception, said: str
) -> None:
    away.error = error
    async with running() as writer:
        await eventually(lambda: away.tries > 3)
        assert (writer.problem, writer.ready) == (said, False)


async def test_whoever_waits_hears_that_it_ends(away: Away) -> None:
    async with running() as writer:
        waiting = writer.put_all([a_request(), a_request()])
        await eventually(lambda: away.tries)
    for outcome in waiting:
        assert isinstance(outcome.exception(), Stopping)


async def test_whoever_comes_while_it_stops_hears_so_at_once() -> None:
    writer = a_writer()
    await writer.drain()
    assert isinstance(writer.put(a_request()).exception(), Stopping)


async def test_commands_that_wait_are_held_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    writer = a_writer()
    assert not writer.is_stalled
    waiting = [writer.put(a_request())]
    now[0] += STALLED_AFTER_SECONDS
    waiting.append(writer.put(a_request()))
    assert not writer.is_stalled
    now[0] += 0.001
    assert writer.is_stalled
    writer.fail_waiting()
    assert not writer.is_stalled
    assert all(isinstance(outcome.exception(), Stopping) for outcome in waiting)


async def test_one_observer_that_fails_keeps_no_other_from_what_was_committed() -> None:
    writer, seen = a_writer(), list[Any]()

    def fail(recorded: Sequence[Recorded]) -> None:
        raise RuntimeError("a fault of the observer")

    writer.observers += [fail, seen.append]
    writer.on_known.append(lambda recorded, events: seen.append("known"))
    waiter = writer.advanced.waiter()
    writer._publish([EVENT], [])
    assert seen == [[EVENT]]
    assert waiter.is_set()

"""What is known of a batch after its append, whichever way that ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from eventstore import log, pooler
from eventstore.errors import EventStoreError, HeadMoved, StoreBusy, StoreUnavailable
from eventstore.keys import Keyring
from service.clock import DatabaseClock
from service.commands import PassTime
from service.memory.draft import Draft
from service.memory.squad import Squad
from service.requests import CommandFailed, Outcome, Request, Ticket
from service.writing import appender as module
from service.writing.appender import Appender
from service.writing.batch import Batch
from service.writing.command_queue import CommandQueue
from service.writing.sealer import Sealing
from service.writing.stats import WriterStats
from tests.unit.support import START, given

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.connection import Connection

CONNECTION = cast("Connection", None)


@pytest.fixture
def appender(monkeypatch: pytest.MonkeyPatch) -> Appender:
    """One whose squad is somewhere in a log."""
    monkeypatch.setattr(module, "pop_lock_wait", lambda connection: 0.0)
    monkeypatch.setattr(pooler, "is_pooled", lambda connection: False)
    appender = Appender(
        DatabaseClock(),
        CommandQueue(),
        lambda recorded, events: None,
        Sealing(Keyring(), encrypt=False),
        lambda: None,
        WriterStats(),
    )
    appender.keeper.squad = given().squad
    return appender


def a_batch(*outcomes: Outcome | Exception) -> Batch:
    """One without events, whose callers wait."""
    loop = asyncio.get_running_loop()
    tickets = [Ticket(Request(PassTime(), "ann", "c"), loop.create_future()) for _ in outcomes]
    return Batch(tickets, list(zip(tickets, outcomes, strict=True)), [], [], START)


def appending(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    async def append(*_: Any, **__: Any) -> datetime:
        if error:
            raise error
        return START

    monkeypatch.setattr(log, "append", append)


async def test_a_batch_that_was_appended_is_in_no_doubt(
    appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    appending(monkeypatch)
    appender.in_doubt = a_batch()
    await appender._append(CONNECTION, a_batch())
    assert appender.in_doubt is None
    assert abs((appender._clock.now() - START).total_seconds()) < 60


@pytest.mark.parametrize("error", [HeadMoved(9), StoreBusy("locked")])
async def test_a_batch_that_was_refused_is_in_no_doubt(
    appender: Appender, monkeypatch: pytest.MonkeyPatch, error: EventStoreError
) -> None:
    appending(monkeypatch, error)
    with pytest.raises(type(error)):
        await appender._append(CONNECTION, a_batch())
    assert appender.in_doubt is None


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), RuntimeError("a fault")])
async def test_of_a_batch_whose_append_broke_off_nobody_knows_whether_it_happened(
    appender: Appender, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Also where that was by a fault of ours: the connection is given up, and the log is looked at."""
    appending(monkeypatch, error)
    batch = a_batch()
    with pytest.raises(StoreUnavailable):
        await appender._append(CONNECTION, batch)
    assert appender.in_doubt is batch


async def test_callers_are_told_each_what_came_of_theirs(appender: Appender) -> None:
    batch = a_batch(Outcome({"n": 1}, 7), CommandFailed("a fault"))
    appender._settle(batch, Draft(appender.squad))
    one, other = (ticket.outcome for ticket in batch.tickets)
    assert one.result() == Outcome({"n": 1}, 7)
    assert isinstance(other.exception(), CommandFailed)


async def test_callers_are_told_also_where_the_state_is_lost_and_then_it_is_read_anew(
    appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Squad, draft: Draft) -> None:
        raise RuntimeError("a fault")

    batch, draft = a_batch(Outcome({"n": 1}, 7)), Draft(appender.squad)
    monkeypatch.setattr(Squad, "merge", fail)
    with pytest.raises(StoreUnavailable, match="must be read again"):
        appender._settle(batch, draft)
    assert batch.tickets[0].outcome.result() == Outcome({"n": 1}, 7)
    assert appender.squad.head.position == 0

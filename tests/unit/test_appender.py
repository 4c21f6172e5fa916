"""What the appender knows of a batch after its append, however the append ended."""

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
from tests.unit.stories import START, given

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.connection import Connection

CONNECTION = cast("Connection", None)


@pytest.fixture
def appender(monkeypatch: pytest.MonkeyPatch) -> Appender:
    """An appender whose state has been read from a log."""
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
    """A batch without events, whose callers are waiting."""
    loop = asyncio.get_running_loop()
    tickets = [Ticket(Request(PassTime(), "ann", "c"), loop.create_future()) for _ in outcomes]
    return Batch(tickets, list(zip(tickets, outcomes, strict=True)), [], [], START)


def stub_append(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    async def append(*_: Any, **__: Any) -> datetime:
        if error:
            raise error
        return START

    monkeypatch.setattr(log, "append", append)


async def test_appended_batch_is_not_in_doubt(appender: Appender, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_append(monkeypatch)
    appender.in_doubt = a_batch()
    await appender._append(CONNECTION, a_batch())
    assert appender.in_doubt is None
    assert abs((appender._clock.now() - START).total_seconds()) < 60


@pytest.mark.parametrize("error", [HeadMoved(9), StoreBusy("locked")])
async def test_rejected_batch_is_not_in_doubt(
    appender: Appender, monkeypatch: pytest.MonkeyPatch, error: EventStoreError
) -> None:
    stub_append(monkeypatch, error)
    with pytest.raises(type(error)):
        await appender._append(CONNECTION, a_batch())
    assert appender.in_doubt is None


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), RuntimeError("a fault")])
async def test_interrupted_append_leaves_its_batch_in_doubt(
    appender: Appender, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Also if a bug of our own interrupted it: the connection is closed, and the log is checked."""
    stub_append(monkeypatch, error)
    batch = a_batch()
    with pytest.raises(StoreUnavailable):
        await appender._append(CONNECTION, batch)
    assert appender.in_doubt is batch


async def test_each_caller_gets_the_outcome_of_its_own_command(appender: Appender) -> None:
    batch = a_batch(Outcome({"n": 1}, 7), CommandFailed("a fault"))
    appender._settle(batch, Draft(appender.squad))
    first, second = (ticket.outcome for ticket in batch.tickets)
    assert first.result() == Outcome({"n": 1}, 7)
    assert isinstance(second.exception(), CommandFailed)


async def test_failed_merge_answers_the_callers_and_discards_the_state(
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

"""Whoever has waited too long is told what is known of their command, and nobody is watched in vain."""

from __future__ import annotations

import asyncio

import pytest

from service.commands import PassTime
from service.requests import Outcome, OutcomeUnknown, Request, Ticket, Unavailable
from service.writing import timeouts
from service.writing.command_queue import CommandQueue
from service.writing.timeouts import Timeouts
from tests.support.wait import eventually


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "_SWEEP_SECONDS", 0.001)


def waiter(seconds: float) -> Ticket:
    """Of a caller who waits for so long."""
    loop = asyncio.get_running_loop()
    return Ticket(Request(PassTime(), "ann", "c"), loop.create_future(), loop.time() + seconds)


async def test_whose_command_was_not_sent_hears_that_it_was_not_carried_out_and_keeps_no_place() -> None:
    waiting, late, patient = CommandQueue(), waiter(0), waiter(60)
    waiting.put(late)
    waiting.put(patient)
    Timeouts(waiting, lambda: ()).watch()
    await eventually(late.outcome.done)
    assert isinstance(late.outcome.exception(), Unavailable)
    assert not patient.outcome.done()
    assert list(waiting) == [patient]


async def test_whose_command_may_be_in_the_log_hears_just_that() -> None:
    waiting, sent, patient = CommandQueue(), waiter(0), waiter(60)
    waiting.put(waiter(60))
    Timeouts(waiting, lambda: (sent, patient)).watch()
    await eventually(sent.outcome.done)
    assert isinstance(sent.outcome.exception(), OutcomeUnknown)
    assert not patient.outcome.done()


async def test_whoever_has_gone_keeps_no_place() -> None:
    waiting, gone = CommandQueue(), waiter(60)
    waiting.put(gone)
    gone.outcome.cancel()
    Timeouts(waiting, lambda: ()).watch()
    await eventually(lambda: not waiting)


async def test_they_are_looked_after_for_as_long_as_anybody_waits() -> None:
    waiting, under_way = CommandQueue(), list[Ticket]()
    looking = Timeouts(waiting, lambda: under_way)
    looking.watch()
    assert looking._timer is None
    waiting.put(waiter(0.002))
    looking.watch()
    timer = looking._timer
    looking.watch()
    assert looking._timer is timer
    # It was taken out of the queue, and its caller waits all the same.
    under_way += waiting.drain()
    await eventually(under_way[0].outcome.done)
    assert looking._timer is not None
    under_way.clear()
    await eventually(lambda: looking._timer is None)
    last = waiter(0)
    waiting.put(last)
    looking.watch()
    await eventually(last.outcome.done)


async def test_whoever_was_told_already_is_told_nothing_else() -> None:
    waiting, told = CommandQueue(), waiter(0)
    waiting.put(told)
    told.resolve(Outcome({}, 1))
    Timeouts(waiting, lambda: ()).watch()
    await eventually(lambda: not waiting)
    assert (await told.outcome).position == 1

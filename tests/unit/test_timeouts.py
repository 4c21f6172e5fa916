"""Callers who wait too long learn what is known of their command, and those who left are forgotten."""

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
def _sweep_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "_SWEEP_SECONDS", 0.001)


def ticket(seconds: float) -> Ticket:
    """The ticket of a caller who waits this long."""
    loop = asyncio.get_running_loop()
    return Ticket(Request(PassTime(), "ann", "c"), loop.create_future(), loop.time() + seconds)


async def test_queued_command_fails_as_unavailable_and_leaves_the_queue_at_its_deadline() -> None:
    queue, late, patient = CommandQueue(), ticket(0), ticket(60)
    queue.put(late)
    queue.put(patient)
    Timeouts(queue, lambda: ()).watch()
    await eventually(late.outcome.done)
    assert isinstance(late.outcome.exception(), Unavailable)
    assert not patient.outcome.done()
    assert list(queue) == [patient]


async def test_command_in_flight_fails_with_an_unknown_outcome_at_its_deadline() -> None:
    queue, sent, patient = CommandQueue(), ticket(0), ticket(60)
    queue.put(ticket(60))
    Timeouts(queue, lambda: (sent, patient)).watch()
    await eventually(sent.outcome.done)
    assert isinstance(sent.outcome.exception(), OutcomeUnknown)
    assert not patient.outcome.done()


async def test_command_of_a_caller_who_has_gone_leaves_the_queue() -> None:
    queue, gone = CommandQueue(), ticket(60)
    queue.put(gone)
    gone.outcome.cancel()
    Timeouts(queue, lambda: ()).watch()
    await eventually(lambda: not queue)


async def test_deadlines_are_checked_as_long_as_any_caller_waits() -> None:
    queue, in_flight = CommandQueue(), list[Ticket]()
    watcher = Timeouts(queue, lambda: in_flight)
    watcher.watch()
    assert watcher._timer is None
    queue.put(ticket(0.002))
    watcher.watch()
    timer = watcher._timer
    watcher.watch()
    assert watcher._timer is timer
    # It has left the queue, but its caller still waits.
    in_flight += queue.drain()
    await eventually(in_flight[0].outcome.done)
    assert watcher._timer is not None
    in_flight.clear()
    await eventually(lambda: watcher._timer is None)
    last = ticket(0)
    queue.put(last)
    watcher.watch()
    await eventually(last.outcome.done)


async def test_answered_command_keeps_its_outcome_at_its_deadline() -> None:
    queue, answered = CommandQueue(), ticket(0)
    queue.put(answered)
    answered.resolve(Outcome({}, 1))
    Timeouts(queue, lambda: ()).watch()
    await eventually(lambda: not queue)
    assert (await answered.outcome).position == 1

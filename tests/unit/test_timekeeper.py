"""A batch is asked for when time alone makes something happen, and not before; a standstill is told of."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest

from service.clock import DatabaseClock
from service.commands import PassTime
from service.memory.squad import Squad
from service.requests import NoOutcome, Outcome, Request, Stopping, Unavailable
from service.scheduling import timekeeper
from service.writing.batch import CLOCK_ACTOR
from tests.support.wait import eventually
from tests.unit.support import START, given

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.writing.writer import Writer

MIDNIGHT = START + timedelta(hours=12)


class HandClock(DatabaseClock):
    """Shows what it is set to, and counts how often somebody looks."""

    def __init__(self, at: datetime) -> None:
        super().__init__()
        self.at = at
        self.looks = 0

    def now(self) -> datetime:
        self.looks += 1
        return self.at


class Pen:
    """A writer that only takes note of what it is asked."""

    def __init__(self, squad: Squad) -> None:
        self.squad = squad
        self.ready = True
        self.asked: list[Request] = []
        self.fails: type[NoOutcome] | None = None

    async def submit(self, request: Request) -> Outcome:
        self.asked.append(request)
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        return Outcome({}, None)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timekeeper, "CLOCK_STEP", timedelta(0))


@asynccontextmanager
async def keeping(pen: Pen, clock: HandClock) -> AsyncIterator[None]:
    task = asyncio.create_task(timekeeper.watch_time(cast("Writer", pen), clock))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
    assert task.cancelled()


async def looked(clock: HandClock) -> None:
    """Somebody has looked at the clock a few times more."""
    seen = clock.looks
    await eventually(lambda: clock.looks > seen + 5)


async def test_nothing_is_asked_for_before_something_is_due_and_then_in_the_clocks_name() -> None:
    pen, clock = Pen(given().squad), HandClock(MIDNIGHT - timedelta(microseconds=1))
    async with keeping(pen, clock):
        await looked(clock)
        assert pen.asked == []
        clock.at = MIDNIGHT
        await eventually(lambda: pen.asked)
    assert (pen.asked[0].command, pen.asked[0].actor) == (PassTime(), CLOCK_ACTOR)


@pytest.mark.parametrize("fails", [Unavailable, Stopping])
async def test_it_goes_on_where_what_it_asked_for_was_not_carried_out(
    fails: type[NoOutcome], caplog: pytest.LogCaptureFixture
) -> None:
    pen, clock = Pen(given().squad), HandClock(MIDNIGHT)
    pen.fails = fails
    async with keeping(pen, clock):
        await eventually(lambda: len(pen.asked) > 2)
    assert len({request.correlation_id for request in pen.asked}) == len(pen.asked)
    # That the service stops is said already.
    told = {record.getMessage() for record in caplog.records}
    assert told == (
        set() if fails is Stopping else {"what is due could not be recorded for now: Unavailable"}
    )


async def test_nothing_is_asked_of_a_writer_that_is_not_ready() -> None:
    pen, clock = Pen(given().squad), HandClock(MIDNIGHT)
    pen.ready = False
    async with keeping(pen, clock):
        for _ in range(20):
            await asyncio.sleep(0)
        assert (pen.asked, clock.looks) == ([], 0)
        pen.ready = True
        await eventually(lambda: pen.asked)


async def test_a_squad_without_rules_has_nothing_to_wait_for() -> None:
    pen, clock = Pen(Squad()), HandClock(MIDNIGHT)
    async with keeping(pen, clock):
        for _ in range(20):
            await asyncio.sleep(0)
    assert pen.asked == []


async def test_a_standstill_is_told_of_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = HandClock(START)
    said: list[list[str]] = []
    async with keeping(Pen(given().squad), clock):
        for back in (0, 4, 3_600, 3_599, 1, 0):
            clock.at = START - timedelta(seconds=back)
            await looked(clock)
            said.append([record.getMessage() for record in caplog.records])
            caplog.clear()
    [standstill] = said.pop(2)
    assert standstill.startswith("time stands still for 3600 s: ")
    assert said == [[], [], [], [], ["time has resumed"]]

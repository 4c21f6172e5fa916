"""A batch is requested when time alone causes an event, and not before; a standstill is logged."""

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
from tests.unit.stories import START, given

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.writing.writer import Writer

MIDNIGHT = START + timedelta(hours=12)


class ManualClock(DatabaseClock):
    """Shows the time that it is set to, and counts how often it is read."""

    def __init__(self, at: datetime) -> None:
        super().__init__()
        self.at = at
        self.reads = 0

    def now(self) -> datetime:
        self.reads += 1
        return self.at


class FakeWriter:
    """A writer that only records its requests."""

    def __init__(self, squad: Squad) -> None:
        self.squad = squad
        self.ready = True
        self.requests: list[Request] = []
        self.error: type[NoOutcome] | None = None

    async def submit(self, request: Request) -> Outcome:
        self.requests.append(request)
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        return Outcome({}, None)


@pytest.fixture(autouse=True)
def _check_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timekeeper, "CLOCK_STEP", timedelta(0))


@asynccontextmanager
async def running(writer: FakeWriter, clock: ManualClock) -> AsyncIterator[None]:
    task = asyncio.create_task(timekeeper.watch_time(cast("Writer", writer), clock))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
    assert task.cancelled()


async def wait_for_reads(clock: ManualClock) -> None:
    """Wait until the clock was read a few more times."""
    seen = clock.reads
    await eventually(lambda: clock.reads > seen + 5)


async def test_batch_is_requested_by_the_clock_as_soon_as_something_is_due() -> None:
    writer, clock = FakeWriter(given().squad), ManualClock(MIDNIGHT - timedelta(microseconds=1))
    async with running(writer, clock):
        await wait_for_reads(clock)
        assert writer.requests == []
        clock.at = MIDNIGHT
        await eventually(lambda: writer.requests)
    assert (writer.requests[0].command, writer.requests[0].actor) == (PassTime(), CLOCK_ACTOR)


@pytest.mark.parametrize("error", [Unavailable, Stopping])
async def test_timekeeper_continues_after_a_request_that_fails(
    error: type[NoOutcome], caplog: pytest.LogCaptureFixture
) -> None:
    writer, clock = FakeWriter(given().squad), ManualClock(MIDNIGHT)
    writer.error = error
    async with running(writer, clock):
        await eventually(lambda: len(writer.requests) > 2)
    assert len({request.correlation_id for request in writer.requests}) == len(writer.requests)
    # That the service stops is logged elsewhere.
    messages = {record.getMessage() for record in caplog.records}
    assert messages == (
        set() if error is Stopping else {"what is due could not be recorded for now: Unavailable"}
    )


async def test_nothing_is_requested_while_the_writer_is_not_ready() -> None:
    writer, clock = FakeWriter(given().squad), ManualClock(MIDNIGHT)
    writer.ready = False
    async with running(writer, clock):
        for _ in range(20):
            await asyncio.sleep(0)
        assert (writer.requests, clock.reads) == ([], 0)
        writer.ready = True
        await eventually(lambda: writer.requests)


async def test_nothing_is_requested_without_a_policy() -> None:
    writer, clock = FakeWriter(Squad()), ManualClock(MIDNIGHT)
    async with running(writer, clock):
        for _ in range(20):
            await asyncio.sleep(0)
    assert writer.requests == []


async def test_standstill_and_its_end_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = ManualClock(START)
    messages: list[list[str]] = []
    async with running(FakeWriter(given().squad), clock):
        for back in (0, 4, 3_600, 3_599, 1, 0):
            clock.at = START - timedelta(seconds=back)
            await wait_for_reads(clock)
            messages.append([record.getMessage() for record in caplog.records])
            caplog.clear()
    [standstill] = messages.pop(2)
    assert standstill.startswith("time stands still for 3600 s: ")
    assert messages == [[], [], [], [], ["time has resumed"]]

"""How a process claims what is due, and how it stops, told without a database."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest

from projections.runs import RUNS, run_id
from service.clock import DatabaseClock
from service.commands import ClaimTick, EndAttempt, PauseJob, SendMessage, TakeUpRun
from service.decide.runs import LEASE_SECONDS
from service.requests import (
    CommandFailed,
    Outcome,
    OutcomeUnknown,
    QueueFull,
    Request,
    Stopping,
    Unavailable,
)
from service.scheduling import scheduler as module
from service.scheduling.scheduler import MAX_SLEEP_SECONDS, Scheduler
from service.scheduling.work import succeeded
from tests.support.wait import eventually
from tests.unit.job_stories import JOB, OTHER, RUNNER, claim, with_job
from tests.unit.support import moment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from service.requests import NoOutcome
    from service.scheduling.calls import AgentClient
    from service.writing.writer import Writer
    from tests.unit.support import Story

RUN = run_id(JOB, moment(60))


class StoppedClock(DatabaseClock):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.at = moment(seconds)

    def now(self) -> datetime:
        return self.at


class Pen:
    """A writer that decides what it is asked when the test lets it."""

    def __init__(self, story: Story) -> None:
        self.squad = story.squad
        self.ready = True
        self.asked: list[Request] = []
        self.fails: Exception | None = None
        self.heard_after: int | None = None
        """At which time of asking nothing fails any more."""
        self.may_go_on = asyncio.Event()

    async def submit(self, request: Request) -> Outcome:
        self.asked.append(request)
        await self.may_go_on.wait()
        if self.fails and len(self.asked) != self.heard_after:
            raise self.fails
        return Outcome({}, None)


def scheduler_of(pen: Pen, at: float) -> Scheduler:
    return Scheduler(cast("Writer", pen), StoppedClock(at), cast("AgentClient", None), RUNNER)


@asynccontextmanager
async def claiming(scheduler: Scheduler) -> AsyncIterator[None]:
    task = asyncio.create_task(scheduler.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_a_stop_waits_for_the_claim_that_is_under_way() -> None:
    """What it claims is this process's to carry out, or to give back."""
    pen = Pen(with_job())
    scheduler = scheduler_of(pen, 60)
    async with claiming(scheduler):
        await eventually(lambda: pen.asked)
        stopping = asyncio.create_task(scheduler.stop())
        await eventually(lambda: scheduler._stopping)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        pen.may_go_on.set()
        await stopping
    assert [request.command for request in pen.asked] == [ClaimTick(name=JOB, runner=RUNNER)]


async def test_nothing_is_claimed_of_a_writer_that_is_not_ready() -> None:
    pen = Pen(with_job())
    pen.may_go_on.set()
    pen.ready = False
    assert await scheduler_of(pen, 60)._claim_due() == MAX_SLEEP_SECONDS
    assert pen.asked == []


async def test_it_sleeps_until_the_next_is_due_and_never_for_long() -> None:
    pen = Pen(with_job())
    pen.may_go_on.set()
    assert await scheduler_of(pen, 59.75)._claim_due() == 0.25
    assert await scheduler_of(pen, 1)._claim_due() == MAX_SLEEP_SECONDS
    assert pen.asked == []


async def test_it_looks_again_at_once_where_all_was_decided_and_after_a_while_where_not() -> None:
    pen = Pen(with_job())
    pen.may_go_on.set()
    scheduler = scheduler_of(pen, 60)
    assert await scheduler._claim_due() == 0
    for fails in (CommandFailed("a fault"), Unavailable(), RuntimeError("a fault")):
        pen.fails = fails
        assert await scheduler._claim_due() == MAX_SLEEP_SECONDS


async def test_a_run_whose_lease_ran_out_is_taken_up_but_not_by_whoever_is_still_at_it() -> None:
    pen = Pen(with_job().given(claim(OTHER), at=60))
    pen.may_go_on.set()
    scheduler = scheduler_of(pen, 60 + LEASE_SECONDS)
    await scheduler._claim_due()
    assert [request.command for request in pen.asked] == [TakeUpRun(run_id=RUN, runner=RUNNER)]
    assert pen.asked[0].correlation_id == RUN
    pen.asked.clear()
    scheduler._runs[RUN] = cast("asyncio.Task[None]", None)
    await scheduler._claim_due()
    assert pen.asked == []


async def test_it_looks_again_where_something_happened_that_concerns_it() -> None:
    story = with_job()
    scheduler = scheduler_of(Pen(story), 0)
    scheduler.observe(story.when(SendMessage(from_agent="ann", message="hello")).recorded)
    assert not scheduler._changed.is_set()
    scheduler.observe(story.when(PauseJob(name=JOB)).recorded)
    assert scheduler._changed.is_set()


@pytest.mark.parametrize("run", [RUN, "unknown"])
async def test_a_run_that_is_not_this_processs_by_now_is_not_carried_out(run: str) -> None:
    pen = Pen(with_job().given(claim(OTHER), at=60))
    pen.may_go_on.set()
    await scheduler_of(pen, 60)._attempt(run)
    assert pen.asked == []


async def test_of_a_log_that_was_replaced_it_goes_on_with_what_is_its_own_in_it() -> None:
    story = with_job(overlap="allow_all").given(claim(), at=60).given(claim(OTHER), at=120)
    scheduler = scheduler_of(Pen(story), 120)
    for run in (RUN, run_id(JOB, moment(120)), "gone"):
        scheduler._runs[run] = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    tasks = dict(scheduler._runs)
    scheduler.cancel_lost_runs()
    await asyncio.sleep(0)
    assert list(scheduler._runs) == [RUN]
    assert [run for run, task in tasks.items() if not task.cancelled()] == [RUN]
    assert scheduler._changed.is_set()
    tasks[RUN].cancel()


@pytest.mark.parametrize(
    ("fails", "times"),
    [(QueueFull(), 3), (Unavailable(), 3), (OutcomeUnknown(), 3), (Stopping(), 1), (CommandFailed(), 1)],
)
async def test_how_an_attempt_ended_is_said_until_it_is_heard_or_cannot_be(
    fails: NoOutcome, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SLEEP_SECONDS", 0)
    story = with_job().given(claim(), at=60)
    pen = Pen(story)
    pen.may_go_on.set()
    pen.heard_after = 3
    pen.fails = fails
    scheduler = scheduler_of(pen, 60)
    async with asyncio.timeout(5):
        await scheduler._record_end(story.row(RUNS, RUN), succeeded(JOB))
    assert len(pen.asked) == times
    assert all(isinstance(request.command, EndAttempt) for request in pen.asked)

"""How a process claims what is due, and how it stops, without a database."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest

from eventstore.events import RunRetried, RunStarted
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
from tests.unit.job_stories import JOB, OTHER, RUNNER, claim, end_attempt, take_up, with_job
from tests.unit.stories import moment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from service.requests import NoOutcome
    from service.scheduling.calls import AgentClient
    from service.scheduling.work import Report, Work
    from service.writing.writer import Writer
    from tests.unit.stories import Story

RUN = run_id(JOB, moment(60))


class FixedClock(DatabaseClock):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.at = moment(seconds)

    def now(self) -> datetime:
        return self.at


class FakeWriter:
    """A writer that answers requests as soon as the test allows it."""

    def __init__(self, story: Story) -> None:
        self.squad = story.squad
        self.ready = True
        self.requests: list[Request] = []
        self.error: Exception | None = None
        self.succeeds_at: int | None = None
        """The number of the request that succeeds although `error` is set."""
        self.may_answer = asyncio.Event()

    async def submit(self, request: Request) -> Outcome:
        self.requests.append(request)
        await self.may_answer.wait()
        if self.error and len(self.requests) != self.succeeds_at:
            raise self.error
        return Outcome({}, None)


def make_scheduler(writer: FakeWriter, at: float) -> Scheduler:
    return Scheduler(cast("Writer", writer), FixedClock(at), cast("AgentClient", None), RUNNER)


@asynccontextmanager
async def running(scheduler: Scheduler) -> AsyncIterator[None]:
    task = asyncio.create_task(scheduler.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_stop_waits_for_the_claim_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process must carry out, or hand back, what it claims."""
    monkeypatch.setattr(module, "STOP_SECONDS", 60.0)
    writer = FakeWriter(with_job())
    scheduler = make_scheduler(writer, 60)
    async with running(scheduler):
        await eventually(lambda: writer.requests)
        stopping = asyncio.create_task(scheduler.stop())
        await eventually(lambda: scheduler._stopping)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        writer.may_answer.set()
        await stopping
    assert [request.command for request in writer.requests] == [ClaimTick(name=JOB, runner=RUNNER)]


async def test_nothing_is_claimed_while_the_writer_is_not_ready() -> None:
    writer = FakeWriter(with_job())
    writer.may_answer.set()
    writer.ready = False
    assert await make_scheduler(writer, 60)._claim_due() == MAX_SLEEP_SECONDS
    assert writer.requests == []


async def test_scheduler_sleeps_until_the_next_tick_but_no_longer_than_the_maximum() -> None:
    writer = FakeWriter(with_job())
    writer.may_answer.set()
    assert await make_scheduler(writer, 59.75)._claim_due() == 0.25
    assert await make_scheduler(writer, 1)._claim_due() == MAX_SLEEP_SECONDS
    assert writer.requests == []


async def test_scheduler_looks_again_at_once_unless_a_claim_was_not_decided() -> None:
    writer = FakeWriter(with_job())
    writer.may_answer.set()
    scheduler = make_scheduler(writer, 60)
    assert await scheduler._claim_due() == 0
    for error in (CommandFailed("a fault"), Unavailable(), RuntimeError("a fault")):
        writer.error = error
        assert await scheduler._claim_due() == MAX_SLEEP_SECONDS


async def test_run_with_an_expired_lease_is_taken_up_unless_in_progress_here() -> None:
    writer = FakeWriter(with_job().given(claim(OTHER), at=60))
    writer.may_answer.set()
    scheduler = make_scheduler(writer, 60 + LEASE_SECONDS)
    await scheduler._claim_due()
    assert [request.command for request in writer.requests] == [TakeUpRun(run_id=RUN, runner=RUNNER)]
    assert writer.requests[0].correlation_id == RUN
    writer.requests.clear()
    scheduler._runs[RUN] = cast("asyncio.Task[None]", None)
    await scheduler._claim_due()
    assert writer.requests == []


async def test_scheduler_wakes_only_for_events_that_concern_it() -> None:
    story = with_job()
    scheduler = make_scheduler(FakeWriter(story), 0)
    scheduler.observe(story.when(SendMessage(from_agent="ann", message="hello")).recorded)
    assert not scheduler._changed.is_set()
    scheduler.observe(story.when(PauseJob(name=JOB)).recorded)
    assert scheduler._changed.is_set()


@pytest.mark.parametrize("run", [RUN, "unknown"])
async def test_run_that_this_process_does_not_hold_is_not_carried_out(run: str) -> None:
    writer = FakeWriter(with_job().given(claim(OTHER), at=60))
    writer.may_answer.set()
    await make_scheduler(writer, 60)._attempt(run, 1)
    assert writer.requests == []


async def test_runs_that_are_not_ours_in_a_replaced_log_are_cancelled() -> None:
    story = with_job(overlap="allow_all").given(claim(), at=60).given(claim(OTHER), at=120)
    scheduler = make_scheduler(FakeWriter(story), 120)
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
    ("error", "submissions"),
    [(QueueFull(), 3), (Unavailable(), 3), (OutcomeUnknown(), 3), (Stopping(), 1), (CommandFailed(), 1)],
)
async def test_end_of_an_attempt_is_submitted_until_it_is_recorded_or_cannot_be(
    error: NoOutcome, submissions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SLEEP_SECONDS", 0)
    story = with_job().given(claim(), at=60)
    writer = FakeWriter(story)
    writer.may_answer.set()
    writer.succeeds_at = 3
    writer.error = error
    scheduler = make_scheduler(writer, 60)
    async with asyncio.timeout(5):
        await scheduler._record_end(story.row(RUNS, RUN), succeeded(JOB))
    assert len(writer.requests) == submissions
    assert all(isinstance(request.command, EndAttempt) for request in writer.requests)


async def test_token_of_an_attempt_without_a_claim_is_the_position_at_which_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third attempt takes over from a process that vanished, and may still be working."""
    tokens: list[int] = []

    async def note_token(work: Work) -> Report:
        tokens.append(work.fencing_token)
        return succeeded(JOB)

    monkeypatch.setattr(module, "perform", note_token)
    story = with_job(retries=2)
    writer = FakeWriter(story)
    writer.may_answer.set()
    scheduler = make_scheduler(writer, 60)
    began: list[int] = []
    for command, at, kind in (
        (claim(), 60, RunStarted),
        (take_up(RUN, RUNNER), 65, RunRetried),
        (take_up(RUN, RUNNER), 65 + LEASE_SECONDS, RunRetried),
    ):
        scheduler.observe(story.when(command, at=at).recorded)
        began.append(story.position_of(kind))
        await asyncio.gather(*scheduler._tasks)
        if kind is RunStarted:
            scheduler.observe(story.when(end_attempt(RUN, succeeded=False), at=61).recorded)
    assert tokens == began
    assert tokens == sorted(set(tokens))

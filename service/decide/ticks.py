"""Decisions about ticks: each gets exactly one outcome, however many processes claim it.

A tick is claimed at the head of the log, so two processes cannot both start it. It starts a run, or is
skipped for a recorded reason, or is missed if no process claimed it within the job's catch-up time. If its
schedule ends before that time is over, nobody was late, and it is skipped.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Literal

from eventstore.events import RunMissed, RunSkipped, SkipReason, TickBuffered
from projections.runs import RunRow, run_id
from service.decide import run_claims, starting
from service.decide.builder import DecisionBuilder
from service.decide.decision import Accepted, Decision, DecisionContext
from service.decide.ending import cancel, set_idle
from service.schedule import due_at, next_tick, schedule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from projections.jobs import JobRow
    from service.commands import ClaimTick
    from service.memory.draft import Draft

MAX_CLOSED_AT_ONCE = 500
"""How many past ticks a change of a schedule records at most; the next attempt continues from there."""

MAX_MISSED_PER_CLAIM = 100
"""How many a claim records at most. After an outage many jobs have some, and other commands must wait."""


def claim_tick(draft: Draft, command: ClaimTick, at: DecisionContext) -> Decision:
    """Give due ticks their outcomes: those that were missed, and the next one after them."""
    job = starting.scheduled_job(draft, command.name)
    if job is None or not job.enabled:
        return Accepted([], {"position": draft.head.position})
    builder = DecisionBuilder(draft, at)
    active = starting.active_runs(draft, job)
    if job.buffered_tick is not None and not active:
        _decide_tick(builder, job, job.buffered_tick, active, command.runner)
    else:
        last = job.ticked_until
        for missed in islice(_ticks(job, lambda tick: _is_late(job, tick, at.now)), MAX_MISSED_PER_CLAIM):
            _miss(builder, job, missed)
            last = missed
        tick = next_tick(schedule_of(job), last)
        if tick and due_at(job, tick) <= at.now and len(builder.events) < MAX_MISSED_PER_CLAIM:
            _decide_tick(builder, job, tick, active, command.runner)
    return builder.accept({} if builder.events else {"position": draft.head.position})


def close_schedule(
    builder: DecisionBuilder, job: JobRow, how: Literal["disabled", "removed", "rescheduled"]
) -> bool:
    """Give the past ticks of a schedule that is about to end their outcomes, even those that jitter delays.

    A tick that could still have run is skipped. One that is buffered will run under the new schedule; if
    there is none, it is skipped too.

    Args:
        builder: of the decision that ends it.
        job: the job as it was until now.
        how: what ends it.

    Returns:
        Whether all of them have one. If they are too many for one decision, the schedule cannot end yet.
    """
    now = builder.at.now
    ticks = _ticks(job, lambda tick: tick <= now) if job.enabled else ()
    past = list(islice(ticks, MAX_CLOSED_AT_ONCE + 1))
    closed = len(past) <= MAX_CLOSED_AT_ONCE
    if closed and job.buffered_tick is not None and how != "rescheduled":
        detail = f"the job was {how} while it waited"
        _skip(builder, job, job.buffered_tick, "overlap", detail, job.position)
    for tick in past[:MAX_CLOSED_AT_ONCE]:
        if _is_late(job, tick, now):
            _miss(builder, job, tick)
        else:
            _skip(builder, job, tick, "schedule_ended", f"the job is being {how}", job.position)
    return closed


def _ticks(job: JobRow, while_: Callable[[datetime], bool]) -> Iterator[datetime]:
    """Yield the job's ticks without an outcome, oldest first, while `while_` holds.

    Yield none if they cannot be computed, so that such a job can still be changed and removed.
    """
    with suppress(ValueError):
        tick = next_tick(schedule_of(job), job.ticked_until)
        while tick and while_(tick):
            yield tick
            tick = next_tick(schedule_of(job), tick)


def _is_late(job: JobRow, tick: datetime, now: datetime) -> bool:
    """Whether a tick has been due for too long to run."""
    return due_at(job, tick) < now - timedelta(seconds=job.catch_up_seconds)


def _miss(builder: DecisionBuilder, job: JobRow, tick: datetime) -> None:
    missed = RunMissed(run_id=run_id(job.name, tick), job=job.name, tick=tick)
    builder.add(missed, caused_by=job.position)


def _skip(
    builder: DecisionBuilder, job: JobRow, tick: datetime, reason: SkipReason, detail: str, caused_by: int
) -> None:
    skipped = RunSkipped(
        run_id=run_id(job.name, tick), job=job.name, tick=tick, reason=reason, detail=detail
    )
    builder.add(skipped, caused_by)


def _decide_tick(
    builder: DecisionBuilder, job: JobRow, tick: datetime, active: list[RunRow], runner: str
) -> None:
    """Decide the outcome of one due tick."""
    orchestrator = builder.state.orchestrator
    if orchestrator is None or not orchestrator.running:
        cause = orchestrator.position if orchestrator else job.position
        _skip(builder, job, tick, "shut_down", "the orchestrator is shut down", cause)
    elif job.paused:
        _skip(builder, job, tick, "paused", job.pause_note or "the job is paused", job.position)
    elif active and job.overlap == "skip":
        detail = f"the run of {_brief(active[0].tick)} is in progress"
        _skip(builder, job, tick, "overlap", detail, active[0].position)
    elif active and job.overlap == "buffer_one" and job.buffered_tick is not None:
        detail = f"the tick of {_brief(job.buffered_tick)} is already waiting"
        _skip(builder, job, tick, "overlap", detail, job.position)
    elif active and job.overlap == "buffer_one":
        builder.add(TickBuffered(job=job.name, tick=tick), active[0].position)
    else:
        _start_tick(builder, job, tick, active if job.overlap == "cancel_other" else [], runner)


def _start_tick(
    builder: DecisionBuilder, job: JobRow, tick: datetime, replaced: list[RunRow], runner: str
) -> None:
    """Start the tick's run in place of those that it replaces, or skip the tick and let them go on."""
    if obstacle := starting.find_obstacle(builder.state, job, builder.at, replaced):
        refused = run_claims.record_refusal(builder, job, obstacle.event)
        _skip(builder, job, tick, obstacle.reason, obstacle.refusal.detail, refused)
        return
    for run in replaced:
        cancel(builder, run, f"cancelled by the tick of {_brief(tick)}")
    starting.start(builder, job, run_id(job.name, tick), tick, runner)
    for agent in dict.fromkeys(run.agent for run in replaced if run.agent):
        set_idle(builder, agent, builder.position)


def _brief(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")

"""Decisions about ticks: each gets exactly one outcome, whoever asks, and however many ask.

A tick is claimed at the head of the log, so two processes cannot both start it. It starts a run, or it is
skipped and says why, or, where nobody was there for longer than the job's catch-up time, it is missed.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Any

from eventstore.events import (
    RunMissed,
    RunSkipped,
    RunStarted,
    SkipReason,
    TickBuffered,
    TokensDenied,
    TokensReserved,
)
from projections.jobs import JOBS, RUNS, JobRow, RunRow, run_id
from service.decide.budget import allowance
from service.decide.decision import Accepted, At, Decision, Refused
from service.decide.runs import (
    LEASE_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    ORCHESTRATOR,
    cancel,
    lease_until,
    rest,
)
from service.decide.unfolding import Unfolding
from service.refusals import Refusal
from service.schedule import due_at, next_tick, schedule_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.commands import ClaimTick, RunJob
    from service.squad import State

MAX_MISSED_AT_ONCE = 500
"""How many missed ticks one decision records; the next decision goes on from there."""


def run_now(state: State, command: RunJob, at: At) -> Decision:
    """Runs a job at once, paused or not; not beside itself, and not while the orchestrator is shut down."""
    job = on_schedule(state, command.name)
    if job is None:
        return no_job(command.name)
    if state.orchestrator is None or not state.orchestrator.running:
        return Refused(Refusal("orchestrator_stopped", "start the orchestrator to run jobs"))
    active = _active_runs(state, job)
    if active and job.overlap != "allow_all":
        held = {"run_id": active[0].id}
        return Refused(Refusal("job_running", f"{job.name} is running already", held))
    told = Unfolding(state, at)
    id_ = at.new_id()
    if denied := _start(told, job, id_, at.now, command.runner, manual=True):
        return Refused(_denial(state, denied, at), told.events)
    reply = {
        "id": id_,
        "job": job.name,
        "tick": at.now,
        "status": "running",
        "attempts": 1,
        "started_at": at.now,
    }
    return Accepted(told.events, reply)


def claim_tick(state: State, command: ClaimTick, at: At) -> Decision:
    """Gives due ticks their outcomes: all that were missed, and the next one after them."""
    job = on_schedule(state, command.name)
    if job is None or not job.enabled:
        return Accepted([], {"position": state.head.position})
    told = Unfolding(state, at)
    active = _active_runs(state, job)
    if job.buffered_tick is not None and not active:
        _decide_tick(told, job, job.buffered_tick, active, command.runner)
    else:
        too_late = at.now - timedelta(seconds=job.catch_up_seconds)
        tick = _miss(told, job, lambda tick: due_at(job, tick) < too_late)
        if tick and due_at(job, tick) <= at.now and len(told.events) < MAX_MISSED_AT_ONCE:
            _decide_tick(told, job, tick, active, command.runner)
    return Accepted(told.events, {} if told.events else {"position": state.head.position})


def close_schedule(told: Unfolding, job: JobRow, *, waiting: str | None = None) -> None:
    """Gives the ticks of a schedule that is about to end their outcomes, those that jitter delays too.

    Args:
        told: the decision that ends it.
        job: the job as it was until now.
        waiting: why the tick that waits for the present run will not come either; None where it will.
    """
    if waiting and job.buffered_tick is not None:
        _skip(told, job, job.buffered_tick, "overlap", waiting, job.position)
    if job.enabled:
        _miss(told, job, lambda tick: tick <= told.at.now)


def on_schedule(state: State, name: str) -> JobRow | None:
    """A job, unless it was removed: until the end of the batch that did so its row is still there."""
    row = state.rows(JOBS).get(name)
    return None if row is None or row.removed else row


def no_job(name: str) -> Refused:
    """The refusal of whatever concerns a job that is not on the schedule."""
    return Refused(Refusal("job_not_found", f"no job is called {name!r}"))


def _miss(told: Unfolding, job: JobRow, is_missed: Callable[[datetime], bool]) -> datetime | None:
    """Records ticks as missed, the oldest first; gives the first tick that is left."""
    tick = next_tick(schedule_of(job), job.ticked_until)
    while tick and is_missed(tick) and len(told.events) < MAX_MISSED_AT_ONCE:
        missed = RunMissed(run_id=run_id(job.name, tick), job=job.name, tick=tick)
        told.add(missed, caused_by=job.position)
        tick = next_tick(schedule_of(job), tick)
    return tick


def _skip(
    told: Unfolding, job: JobRow, tick: datetime, reason: SkipReason, detail: str, caused_by: int
) -> None:
    skipped = RunSkipped(
        run_id=run_id(job.name, tick), job=job.name, tick=tick, reason=reason, detail=detail
    )
    told.add(skipped, caused_by)


def _decide_tick(told: Unfolding, job: JobRow, tick: datetime, active: list[RunRow], runner: str) -> None:
    """What becomes of one due tick."""
    orchestrator = told.state.orchestrator
    if orchestrator is None or not orchestrator.running:
        cause = orchestrator.position if orchestrator else job.position
        _skip(told, job, tick, "shut_down", "the orchestrator is shut down", cause)
    elif job.paused:
        _skip(told, job, tick, "paused", job.pause_note or "the job is paused", job.position)
    elif active and job.overlap == "skip":
        detail = f"the run of {_brief(active[0].tick)} is under way"
        _skip(told, job, tick, "overlap", detail, active[0].position)
    elif active and job.overlap == "buffer_one" and job.buffered_tick is not None:
        detail = f"the tick of {_brief(job.buffered_tick)} waits already"
        _skip(told, job, tick, "overlap", detail, job.position)
    elif active and job.overlap == "buffer_one":
        told.add(TickBuffered(job=job.name, tick=tick), active[0].position)
    else:
        _start_tick(told, job, tick, active if job.overlap == "cancel_other" else [], runner)


def _start_tick(told: Unfolding, job: JobRow, tick: datetime, cancelled: list[RunRow], runner: str) -> None:
    for run in cancelled:
        cancel(told, run, f"cancelled by the tick of {_brief(tick)}")
    denied = _start(told, job, run_id(job.name, tick), tick, runner)
    if denied:
        detail = f"{job.tokens} tokens are needed, {max(denied.remaining, 0)} remain"
        _skip(told, job, tick, "budget", detail, told.position)
    done = Counter(run.agent for run in cancelled if run.agent and (denied or run.agent != job.agent))
    for agent, runs in done.items():
        rest(told, agent, runs, told.position)


def _start(
    told: Unfolding, job: JobRow, id_: str, tick: datetime, runner: str, *, manual: bool = False
) -> TokensDenied | None:
    """Starts a run, with the tokens that it needs; or denies them, which is then the last event."""
    state, at = told.state, told.at
    agent, day = job.agent or ORCHESTRATOR, told.state.day
    reserved: TokensReserved | None = None
    if job.tokens and day:
        freed = told.given_back[day.day, agent]
        # What the cancelled runs of other agents give back is free for the squad, and so for this one.
        of_others = sum(tokens for (on, _), tokens in told.given_back.items() if on == day.day) - freed
        judged = allowance(
            state, day._replace(reserved=day.reserved - of_others), agent, job.tokens - freed
        )
        if judged.denied:
            if agent == ORCHESTRATOR:
                told.arrive(agent)
            denied = TokensDenied(
                day=day.day,
                agent=agent,
                tokens=job.tokens,
                reason=judged.denied,
                remaining=judged.remaining + freed,
            )
            part = state.agent_budget(day, agent)
            of_squad = judged.denied == "budget_exhausted"
            told.add(denied, day.position if of_squad else part.position or state.policy.position)
            return denied
        reserved = TokensReserved(
            day=day.day,
            reservation_id=at.new_id(),
            agent=agent,
            tokens=job.tokens,
            expires_at=at.now + _longest_run(job),
        )
    if job.agent or reserved:
        told.arrive(agent, "operation_started")
    if reserved:
        told.add(reserved)
    started = RunStarted(
        run_id=id_,
        job=job.name,
        agent=job.agent,
        tick=tick,
        manual=manual,
        runner=runner,
        attempts_allowed=job.retries + 1,
        lease_expires_at=lease_until(at.now),
        reservation_id=reserved.reservation_id if reserved else None,
    )
    told.add(started, job.position)
    return None


def _longest_run(job: JobRow) -> timedelta:
    """How long a run may take with all its attempts, and some time to spare for waiting its turn."""
    one_attempt = job.timeout_seconds + LEASE_SECONDS + 2 * LONGEST_BACKOFF_SECONDS
    return timedelta(seconds=(job.retries + 1) * one_attempt)


def _active_runs(state: State, job: JobRow) -> list[RunRow]:
    """The job's runs under way, the oldest first."""
    running = (run for run in state.all(RUNS) if run.job == job.name and run.status == "running")
    return sorted(running, key=lambda run: run.fencing_token)


def _denial(state: State, denied: TokensDenied, at: At) -> Refusal:
    extra: dict[str, Any] = {"remaining": denied.remaining}
    retry_after_seconds = None
    if day := state.day:
        extra["resets_at"] = day.ends_at
        retry_after_seconds = max(1, ceil((day.ends_at - at.now).total_seconds()))
    detail = f"{denied.tokens} tokens are needed, {max(denied.remaining, 0)} remain"
    return Refusal(denied.reason, detail, extra, retry_after_seconds)


def _brief(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")

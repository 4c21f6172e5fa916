"""Decisions about jobs: every tick gets exactly one outcome, whoever asks, and however many ask.

A tick is claimed at the head of the log, so two processes cannot both start it. It starts a run, or it is
skipped and says why, or, where nobody was there for longer than the job's catch-up time, it is missed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from eventstore.events import (
    JobDefined,
    JobPaused,
    JobRemoved,
    JobResumed,
    RunMissed,
    RunSkipped,
    RunStarted,
    SkipReason,
    TickBuffered,
    TokensDenied,
    TokensReserved,
)
from eventstore.recorded import NewEvent
from projections.agents import AGENTS
from projections.jobs import JOBS, RUNS, JobRow, RunRow, run_id
from service.decide.agents import arrive
from service.decide.budget import allowance
from service.decide.decision import Accepted, At, Decision, Refused
from service.decide.runs import LEASE_SECONDS, ORCHESTRATOR, end, is_free, lease_until
from service.refusals import Refusal
from service.schedule import due_at, next_tick, schedule_of

if TYPE_CHECKING:
    from service.commands import ClaimTick, DefineJob, PauseJob, RemoveJob, ResumeJob, RunJob
    from service.squad import State

MAX_MISSED_AT_ONCE = 500
"""How many missed ticks one decision records; the next decision goes on from there."""

_RETRY_MARGIN_SECONDS = 600.0


def define(state: State, command: DefineJob, at: At) -> Decision:
    """Puts a job on the schedule, or changes it; the same once more changes nothing."""
    del at
    wanted = command.definition
    if wanted.agent is not None and state.rows(AGENTS).get(wanted.agent) is None:
        return Refused(Refusal("agent_not_found", f"no agent is called {wanted.agent!r}"))
    row = state.rows(JOBS).get(command.name)
    if row and all(getattr(row, name) == value for name, value in wanted):
        return Accepted([], {"name": row.name, "position": row.position})
    # A default gives way to whatever somebody said on purpose, also before this start.
    if row and command.source == "default" and row.source != "default":
        return Accepted([], {"name": row.name, "position": row.position})
    defined = JobDefined(job=command.name, source=command.source, definition=wanted)
    return Accepted([NewEvent(defined, caused_by=row.position if row else None)], {"name": command.name})


def remove(state: State, command: RemoveJob, at: At) -> Decision:
    """Takes a job off the schedule; runs under way end by themselves."""
    del at
    row = state.rows(JOBS).get(command.name)
    if row is None:
        return _no_job(command.name)
    return Accepted([NewEvent(JobRemoved(job=row.name), caused_by=row.position)], {"name": row.name})


def pause(state: State, command: PauseJob, at: At) -> Decision:
    """Skips the job's ticks from here on."""
    del at
    row = state.rows(JOBS).get(command.name)
    if row is None:
        return _no_job(command.name)
    reply = {"name": row.name, "paused": True, "note": command.note}
    if row.paused and row.pause_note == command.note:
        return Accepted([], {**reply, "position": row.position})
    paused = JobPaused(job=row.name, reason="manual", note=command.note)
    return Accepted([NewEvent(paused, caused_by=row.position)], reply)


def resume(state: State, command: ResumeJob, at: At) -> Decision:
    """Runs the job's ticks again."""
    del at
    row = state.rows(JOBS).get(command.name)
    if row is None:
        return _no_job(command.name)
    reply = {"name": row.name, "paused": False, "note": command.note}
    if not row.paused:
        return Accepted([], {**reply, "position": row.position})
    resumed = JobResumed(job=row.name, note=command.note)
    return Accepted([NewEvent(resumed, caused_by=row.position)], reply)


def run_now(state: State, command: RunJob, at: At) -> Decision:
    """Runs a job at once, paused or not; not beside itself, and not while the orchestrator is shut down."""
    job = state.rows(JOBS).get(command.name)
    if job is None:
        return _no_job(command.name)
    orchestrator = state.orchestrator
    if orchestrator is None or not orchestrator.running:
        return Refused(Refusal("orchestrator_stopped", "start the orchestrator to run jobs"))
    active = _active_runs(state, job)
    if active and job.overlap != "allow_all":
        held = {"run_id": active[0].id}
        return Refused(Refusal("job_running", f"{job.name} is running already", held))
    id_ = at.new_id()
    events, denied = _reserve(state, job, at, after=0)
    if denied:
        refusal = Refusal(
            "budget_exhausted", f"{job.name} needs {job.tokens} tokens", {"remaining": denied.remaining}
        )
        return Refused(refusal, events)
    reservation = _reservation_in(events)
    events.append(
        NewEvent(_started(job, id_, at.now, command.runner, reservation, at, manual=True), job.position)
    )
    reply = {
        "id": id_,
        "job": job.name,
        "tick": at.now,
        "status": "running",
        "attempts": 1,
        "started_at": at.now,
    }
    return Accepted(events, reply)


def claim_tick(state: State, command: ClaimTick, at: At) -> Decision:
    """Gives due ticks their outcomes: all that were missed, and the next one after them."""
    job = state.rows(JOBS).get(command.name)
    if job is None or not job.enabled:
        return Accepted([], {"position": state.head.position})
    active = _active_runs(state, job)
    if job.buffered_tick is not None and not active:
        return Accepted(_outcome(state, job, job.buffered_tick, active, command.runner, at, after=0), {})
    events: list[NewEvent] = []
    tick = next_tick(schedule_of(job), job.ticked_until)
    catch_up = timedelta(seconds=job.catch_up_seconds)
    while tick and at.now - due_at(job, tick) > catch_up and len(events) < MAX_MISSED_AT_ONCE:
        missed = RunMissed(run_id=run_id(job.name, tick), job=job.name, tick=tick)
        events.append(NewEvent(missed, caused_by=job.position))
        tick = next_tick(schedule_of(job), tick)
    if tick and due_at(job, tick) <= at.now and len(events) < MAX_MISSED_AT_ONCE:
        events += _outcome(state, job, tick, active, command.runner, at, after=len(events))
    return Accepted(events, {} if events else {"position": state.head.position})


def due_jobs(state: State, now: datetime) -> tuple[list[str], list[str], datetime | None]:
    """What is to be claimed now: jobs with due ticks, free runs; and when there will be something next."""
    jobs, runs, later = [], [], []
    busy = {row.job for row in state.all(RUNS) if row.status == "running"}
    by_priority = sorted(state.all(JOBS), key=lambda job: _priority(state, job), reverse=True)
    for job in by_priority:
        if not job.enabled or job.removed:
            continue
        if job.buffered_tick is not None and job.name not in busy:
            jobs.append(job.name)
            continue
        tick = next_tick(schedule_of(job), job.ticked_until)
        if tick is not None:
            due = due_at(job, tick)
            (jobs.append(job.name) if due <= now else later.append(due))
    for run in state.all(RUNS):
        if run.status != "running":
            continue
        if is_free(run, now):
            runs.append(run.id)
        elif due_next := run.retry_at or run.lease_expires_at:
            later.append(due_next)
    return jobs, runs, min(later, default=None)


def _priority(state: State, job: JobRow) -> int:
    agent = state.rows(AGENTS).get(job.agent) if job.agent else None
    return agent.priority if agent else 0


def _outcome(
    state: State, job: JobRow, tick: datetime, active: list[RunRow], runner: str, at: At, *, after: int
) -> list[NewEvent]:
    """What becomes of one due tick, as the events `after` others of one command."""
    id_ = run_id(job.name, tick)

    def skip(reason: SkipReason, detail: str, cause: int) -> list[NewEvent]:
        skipped = RunSkipped(run_id=id_, job=job.name, tick=tick, reason=reason, detail=detail)
        return [NewEvent(skipped, caused_by=cause)]

    orchestrator = state.orchestrator
    if orchestrator is None or not orchestrator.running:
        cause = orchestrator.position if orchestrator else job.position
        return skip("shut_down", "the orchestrator is shut down", cause)
    if job.paused:
        return skip("paused", job.pause_note or "the job is paused", job.position)
    events: list[NewEvent] = []
    if active and job.overlap == "skip":
        return skip("overlap", f"the run of {_brief(active[0].tick)} is under way", active[0].position)
    if active and job.overlap == "buffer_one":
        if job.buffered_tick is not None:
            return skip("overlap", f"the tick of {_brief(job.buffered_tick)} waits already", job.position)
        return [NewEvent(TickBuffered(job=job.name, tick=tick), caused_by=active[0].position)]
    if active and job.overlap == "cancel_other":
        reason = f"cancelled by the tick of {_brief(tick)}"
        for run in active:
            report = f"{job.name} was {reason}"
            events += end(
                state, run, "failed", at, reason=reason, tokens=None, report=report, data=None, goes_on=True
            )
    reserving, denied = _reserve(state, job, at, after=after + len(events))
    events += reserving
    if denied:
        cause = state.head.position + after + len(events)
        return [
            *events,
            *skip("budget", f"{job.tokens} tokens are needed, {denied.remaining} remain", cause),
        ]
    reservation = _reservation_in(reserving)
    events.append(NewEvent(_started(job, id_, tick, runner, reservation, at), caused_by=job.position))
    return events


def _active_runs(state: State, job: JobRow) -> list[RunRow]:
    """The job's runs under way, the oldest first."""
    running = (run for run in state.all(RUNS) if run.job == job.name and run.status == "running")
    return sorted(running, key=lambda run: run.fencing_token)


def _reserve(
    state: State, job: JobRow, at: At, *, after: int
) -> tuple[list[NewEvent], TokensDenied | None]:
    """The agent at work, and its tokens set aside; or the denial, which is the last event."""
    del after
    agent = job.agent or ORCHESTRATOR
    events = arrive(state, agent, at, "operation_started") if job.agent or job.tokens else []
    day = state.day
    if not job.tokens or day is None:
        return events, None
    judged = allowance(state, day, agent, job.tokens)
    if judged.denied:
        denied = TokensDenied(
            day=day.day, agent=agent, tokens=job.tokens, reason=judged.denied, remaining=judged.remaining
        )
        return [*events, NewEvent(denied, caused_by=day.position)], denied
    longest = (job.retries + 1) * (job.timeout_seconds + LEASE_SECONDS) + _RETRY_MARGIN_SECONDS * (
        job.retries + 1
    )
    reserved = TokensReserved(
        day=day.day,
        reservation_id=at.new_id(),
        agent=agent,
        tokens=job.tokens,
        expires_at=at.now + timedelta(seconds=longest),
    )
    return [*events, NewEvent(reserved)], None


def _reservation_in(events: list[NewEvent]) -> str | None:
    return next((new.event.reservation_id for new in events if isinstance(new.event, TokensReserved)), None)


def _started(
    job: JobRow,
    id_: str,
    tick: datetime,
    runner: str,
    reservation_id: str | None,
    at: At,
    *,
    manual: bool = False,
) -> RunStarted:
    return RunStarted(
        run_id=id_,
        job=job.name,
        agent=job.agent,
        tick=tick,
        manual=manual,
        runner=runner,
        attempts_allowed=job.retries + 1,
        lease_expires_at=lease_until(at.now),
        reservation_id=reservation_id,
    )


def _brief(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def _no_job(name: str) -> Refused:
    return Refused(Refusal("job_not_found", f"no job is called {name!r}"))

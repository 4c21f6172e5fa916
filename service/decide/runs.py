"""Decisions about runs: who holds one, and how it ends.

A run is held by one process under a lease, which it renews. When the lease runs out, or when the next
attempt after a failed one is due, whichever process is first takes the run up; where no attempt is left, a
run whose process vanished is recorded as lost.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from eventstore.events import (
    AgentStatusChanged,
    JobPaused,
    MessageSent,
    RunAttemptFailed,
    RunFinished,
    RunOutcome,
    RunRenewed,
    RunRetried,
    TokensReleased,
    TokensSettled,
    TokensUsed,
)
from eventstore.recorded import NewEvent
from projections.agents import AGENTS
from projections.budgets import RESERVATIONS
from projections.jobs import JOBS, RUNS, RunRow
from service.decide.agents import arrive
from service.decide.budget import crossings
from service.decide.decision import Accepted, At, Decision, Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from typing import Any

    from service.commands import EndAttempt, RenewRun, TakeUpRun
    from service.squad import State

LEASE_SECONDS = 15.0
"""How long a run stays with a process that says nothing. Renewed at a third of it."""

ORCHESTRATOR = "orchestrator"
"""Who reports on runs that concern no agent, and whom all reports are sent to."""

_BACKOFF_SECONDS = (1.0, 300.0)


def lease_until(now: datetime) -> datetime:
    """When a lease that is taken or renewed now runs out."""
    return now + timedelta(seconds=LEASE_SECONDS)


def backoff(run_id: str, attempt: int) -> timedelta:
    """The wait after a failed attempt: 1, 2, 4 ... seconds, of which up to half is taken off by jitter.

    The jitter is the attempt's own, so that a decision made twice is the same decision.
    """
    first, longest = _BACKOFF_SECONDS
    share = sha256(f"{run_id}/{attempt}".encode()).digest()[0] / 255
    return timedelta(seconds=min(first * 2.0 ** (attempt - 1), longest) * (0.5 + share / 2))


def take_up(state: State, command: TakeUpRun, at: At) -> Decision:
    """Gives a run to another process, if nobody holds it and an attempt is due; or records it as lost."""
    row = state.rows(RUNS).get(command.run_id)
    nothing = Accepted([], {"position": state.head.position})
    if row is None or row.status != "running" or not is_free(row, at.now):
        return nothing
    lease_ran_out = row.lease_expires_at is not None
    if lease_ran_out and row.attempts >= row.attempts_allowed:
        reason = "the process that ran it vanished"
        report = f"{row.job} was lost: {reason}"
        return Accepted(
            end(state, row, "lost", at, reason=reason, tokens=None, report=report, data=None), {}
        )
    retried = RunRetried(
        run_id=row.id,
        job=row.job,
        attempt=row.attempts + 1,
        runner=command.runner,
        lease_expires_at=lease_until(at.now),
        lease_ran_out=lease_ran_out,
    )
    return Accepted([NewEvent(retried, caused_by=row.position)], {})


def is_free(row: RunRow, now: datetime) -> bool:
    """Whether a run waits for somebody to take it up."""
    due = row.retry_at or row.lease_expires_at
    return due is not None and due <= now


def renew(state: State, command: RenewRun, at: At) -> Decision:
    """Extends the lease of a run that its process still holds."""
    row = _held(state, command)
    if row is None:
        return _not_held(command.run_id)
    until = lease_until(at.now)
    renewed = RunRenewed(run_id=row.id, job=row.job, lease_expires_at=until)
    return Accepted([NewEvent(renewed, caused_by=row.position)], {"lease_expires_at": until})


def end_attempt(state: State, command: EndAttempt, at: At) -> Decision:
    """Ends an attempt: the run is over, or its next attempt waits."""
    row = _held(state, command)
    if row is None or row.attempts != command.attempt:
        return _not_held(command.run_id)
    if command.succeeded or row.attempts >= row.attempts_allowed:
        outcome: RunOutcome = "succeeded" if command.succeeded else "failed"
        events = end(
            state,
            row,
            outcome,
            at,
            reason=command.reason,
            tokens=command.tokens_used,
            report=command.report,
            data=command.data,
        )
        return Accepted(events, {"status": outcome})
    events = []
    if command.tokens_used and (day := state.day):
        used = TokensUsed(day=day.day, agent=_reporter(row), tokens=command.tokens_used)
        events += [*arrive(state, _reporter(row), at), NewEvent(used)]
    failed = RunAttemptFailed(
        run_id=row.id,
        job=row.job,
        attempt=row.attempts,
        reason=command.reason or "it failed",
        retry_at=at.now + backoff(row.id, row.attempts),
    )
    events.append(NewEvent(failed, caused_by=row.position))
    return Accepted(events, {"status": "running", "retry_at": failed.retry_at})


def end(
    state: State,
    row: RunRow,
    outcome: RunOutcome,
    at: At,
    *,
    reason: str | None,
    tokens: int | None,
    report: str,
    data: dict[str, Any] | None,
    goes_on: bool = False,
) -> list[NewEvent]:
    """All that the end of a run brings about: tokens settled, the agent idle, the squad told.

    Args:
        state: the state.
        row: the run.
        outcome: how it ended.
        at: now.
        reason: why, where it did not succeed.
        tokens: what it used; None gives its reservation back.
        report: what the squad is told.
        data: goes with the report.
        goes_on: the agent has another run of the job at once, and does not become idle.
    """
    # Who did not answer did not speak either.
    reporter = _reporter(row) if outcome == "succeeded" else ORCHESTRATOR
    events = arrive(state, reporter, at)
    events += _settle(state, row, _reporter(row), tokens, after=len(events))
    finished = RunFinished(
        run_id=row.id,
        job=row.job,
        agent=row.agent,
        outcome=outcome,
        attempts=row.attempts,
        reason=reason,
        tokens_used=tokens,
    )
    events.append(NewEvent(finished, caused_by=row.position))
    cause = state.head.position + len(events)
    told = MessageSent(
        message_id=at.new_id(),
        agent=reporter,
        to_agent=ORCHESTRATOR,
        message=report,
        task_id=None,
        data={**(data or {}), "job": row.job, "run_id": row.id, "status": outcome},
    )
    events.append(NewEvent(told, caused_by=cause))
    job = state.rows(JOBS).get(row.job)
    if outcome != "succeeded" and job and job.pause_on_failure and not job.paused:
        paused = JobPaused(job=row.job, reason="failure", note=reason)
        events.append(NewEvent(paused, caused_by=cause))
    if goes_on:
        return events
    if row.agent and (agent := state.rows(AGENTS).get(row.agent)) and agent.operations <= 1:
        idle = AgentStatusChanged(agent=row.agent, previous="active", status="idle", reason="run_ended")
        events.append(NewEvent(idle, caused_by=cause))
    return events


def _settle(state: State, row: RunRow, reporter: str, tokens: int | None, *, after: int) -> list[NewEvent]:
    held = state.rows(RESERVATIONS).get(row.reservation_id) if row.reservation_id else None
    day = state.day
    if held and held.state == "active":
        if tokens is None:
            released = TokensReleased(
                day=held.day,
                reservation_id=held.id,
                agent=held.agent,
                tokens_reserved=held.tokens,
                reason="released",
            )
            return [NewEvent(released, caused_by=held.position)]
        settled = TokensSettled(
            day=held.day,
            reservation_id=held.id,
            agent=held.agent,
            tokens_reserved=held.tokens,
            tokens_used=tokens,
        )
        events = [NewEvent(settled, caused_by=held.position)]
        counted = held.day
    elif tokens and day:
        events = [NewEvent(TokensUsed(day=day.day, agent=reporter, tokens=tokens), caused_by=row.position)]
        counted = day.day
    else:
        return []
    if day and counted == day.day:
        cause = state.head.position + after + 1
        events += crossings(state, day, day.used + (tokens or 0), caused_by=cause)
    return events


def _reporter(row: RunRow) -> str:
    return row.agent or ORCHESTRATOR


def _held(state: State, command: RenewRun | EndAttempt) -> RunRow | None:
    row = state.rows(RUNS).get(command.run_id)
    held = row is not None and row.status == "running" and row.runner == command.runner
    return row if held else None


def _not_held(run_id: str) -> Refused:
    return Refused(Refusal("run_not_held", f"this process does not hold run {run_id}"))

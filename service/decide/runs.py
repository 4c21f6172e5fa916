"""Decisions about runs: who holds one, and how it ends.

A run is held by one process under a lease, which it renews. When the lease runs out, or when the next
attempt after a failed one is due, whichever process is first takes the run up; where no attempt is left, a
run whose process vanished is recorded as lost.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

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
from service.decide.budget import crossings, use
from service.decide.decision import Accepted, At, Decision, Refused
from service.decide.unfolding import Unfolding
from service.refusals import Refusal

if TYPE_CHECKING:
    from service.commands import EndAttempt, RenewRun, TakeUpRun
    from service.squad import State

LEASE_SECONDS = 15.0
"""How long a run stays with a process that says nothing. Renewed at a third of it."""

ORCHESTRATOR = "orchestrator"
"""Who reports on runs that concern no agent, and whom all reports are sent to."""

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 300.0


def lease_until(now: datetime) -> datetime:
    """When a lease that is taken or renewed now runs out."""
    return now + timedelta(seconds=LEASE_SECONDS)


def backoff(run_id: str, attempt: int) -> timedelta:
    """The wait after a failed attempt: 1, 2, 4 ... seconds, of which up to half is taken off by jitter.

    The jitter is the attempt's own, so that a decision made twice is the same decision.
    """
    seconds = min(FIRST_BACKOFF_SECONDS * 2.0 ** (attempt - 1), LONGEST_BACKOFF_SECONDS)
    share = sha256(f"{run_id}/{attempt}".encode()).digest()[0] / 255
    return timedelta(seconds=seconds * (0.5 + share / 2))


def take_up(state: State, command: TakeUpRun, at: At) -> Decision:
    """Gives a run to another process, if nobody holds it and an attempt is due; or records it as lost."""
    row = state.rows(RUNS).get(command.run_id)
    if row is None or row.status != "running" or not is_free(row, at.now):
        return Accepted([], {"position": state.head.position})
    told = Unfolding(state, at)
    lease_ran_out = row.lease_expires_at is not None
    if lease_ran_out and row.attempts >= row.attempts_allowed:
        reason = "the process that ran it vanished"
        _end(told, row, Ending("lost", f"{row.job} was lost: {reason}", reason))
    elif obstacle := _obstacle(state, row):
        reason = f"{obstacle} before attempt {row.attempts + 1} of {row.attempts_allowed}"
        ended = _finish(told, row, Ending("failed", f"{row.job} failed: {reason}", reason))
        _rest_after(told, row, ended)
    else:
        retried = RunRetried(
            run_id=row.id,
            job=row.job,
            attempt=row.attempts + 1,
            runner=command.runner,
            lease_expires_at=lease_until(at.now),
            lease_ran_out=lease_ran_out,
        )
        told.add(retried, row.position)
    return Accepted(told.events, {})


def _obstacle(state: State, row: RunRow) -> str | None:
    """Why a run that began is not to be tried again."""
    job, orchestrator = state.rows(JOBS).get(row.job), state.orchestrator
    if job is None or job.removed:
        return "the job was removed"
    if orchestrator is None or not orchestrator.running:
        return "the orchestrator was shut down"
    return None


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
    told = Unfolding(state, at)
    if command.succeeded or row.attempts >= row.attempts_allowed:
        outcome: RunOutcome = "succeeded" if command.succeeded else "failed"
        reason, tokens = command.reason, command.tokens_used
        _end(told, row, Ending(outcome, command.report, reason, tokens, command.data))
        return Accepted(told.events, {"status": outcome})
    if command.tokens_used:
        told.arrive(_worker(row))
        _use(told, row, command.tokens_used)
    failed = RunAttemptFailed(
        run_id=row.id,
        job=row.job,
        attempt=row.attempts,
        reason=command.reason or "it failed",
        retry_at=at.now + backoff(row.id, row.attempts),
        tokens_used=command.tokens_used,
    )
    told.add(failed, row.position)
    return Accepted(told.events, {"status": "running", "retry_at": failed.retry_at})


class Ending(NamedTuple):
    """How a run ends."""

    outcome: RunOutcome
    report: str
    """What the squad is told."""
    reason: str | None = None
    """Why it did not succeed."""
    tokens_used: int | None = None
    """By the last attempt; None gives back what was reserved."""
    data: dict[str, Any] | None = None
    """Goes with the report."""


def cancel(told: Unfolding, row: RunRow, reason: str) -> None:
    """Ends a run from outside. That is no failure of the job, and what follows decides of its agent."""
    _finish(told, row, Ending("failed", f"{row.job} was {reason}", reason))


def rest(told: Unfolding, agent: str, runs: int, caused_by: int) -> None:
    """The agent of runs that ended is idle, unless it has other work."""
    row = told.state.rows(AGENTS).get(agent)
    if row and row.operations <= runs and (row.status == "active" or told.has_arrived(agent)):
        idle = AgentStatusChanged(agent=agent, previous="active", status="idle", reason="run_ended")
        told.add(idle, caused_by)


def _end(told: Unfolding, row: RunRow, ending: Ending) -> None:
    """All that the end of a run brings about."""
    ended = _finish(told, row, ending)
    job = told.state.rows(JOBS).get(row.job)
    may_pause = job and job.pause_on_failure and not (job.paused or job.removed)
    if ending.outcome != "succeeded" and may_pause:
        told.add(JobPaused(job=row.job, reason="failure", note=ending.reason), ended)
    _rest_after(told, row, ended)


def _finish(told: Unfolding, row: RunRow, ending: Ending) -> int:
    """Settles a run's tokens, finishes it, and tells the squad. Gives the position of the finish."""
    # Who did not answer did not speak either.
    reporter = _worker(row) if ending.outcome == "succeeded" else ORCHESTRATOR
    told.arrive(reporter)
    _settle(told, row, ending.tokens_used)
    known = [tokens for tokens in (row.tokens_used, ending.tokens_used) if tokens is not None]
    finished = RunFinished(
        run_id=row.id,
        job=row.job,
        agent=row.agent,
        outcome=ending.outcome,
        attempts=row.attempts,
        reason=ending.reason,
        tokens_used=sum(known) if known else None,
    )
    ended = told.add(finished, row.position)
    message = MessageSent(
        message_id=told.at.new_id(),
        agent=reporter,
        to_agent=ORCHESTRATOR,
        message=ending.report,
        task_id=None,
        data={**(ending.data or {}), "job": row.job, "run_id": row.id, "status": ending.outcome},
    )
    told.add(message, ended)
    return ended


def _rest_after(told: Unfolding, row: RunRow, ended: int) -> None:
    if row.agent:
        rest(told, row.agent, 1, ended)


def _settle(told: Unfolding, row: RunRow, tokens: int | None) -> None:
    held = told.state.rows(RESERVATIONS).get(row.reservation_id) if row.reservation_id else None
    if held is None or held.state != "active":
        if tokens:
            _use(told, row, tokens)
    elif tokens is None:
        released = TokensReleased(
            day=held.day,
            reservation_id=held.id,
            agent=held.agent,
            tokens_reserved=held.tokens,
            reason="released",
        )
        told.add(released, held.position)
        told.given_back[held.day, held.agent] += held.tokens
    else:
        settled = TokensSettled(
            day=held.day,
            reservation_id=held.id,
            agent=held.agent,
            tokens_reserved=held.tokens,
            tokens_used=tokens,
        )
        position = told.add(settled, held.position)
        day = told.state.day
        if day and day.day == held.day:
            told.events += crossings(told.state, day, day.used + tokens, caused_by=position)


def _use(told: Unfolding, row: RunRow, tokens: int) -> None:
    """Records tokens that nothing is reserved for, or not any more."""
    if day := told.state.day:
        used = TokensUsed(day=day.day, agent=_worker(row), tokens=tokens)
        told.events += use(told.state, day, used, after=len(told.events), caused_by=row.position)


def _worker(row: RunRow) -> str:
    """Whose work a run is."""
    return row.agent or ORCHESTRATOR


def _held(state: State, command: RenewRun | EndAttempt) -> RunRow | None:
    row = state.rows(RUNS).get(command.run_id)
    held = row is not None and row.status == "running" and row.runner == command.runner
    return row if held else None


def _not_held(run_id: str) -> Refused:
    return Refused(Refusal("run_not_held", f"this process does not hold run {run_id}"))

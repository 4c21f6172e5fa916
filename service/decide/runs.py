"""Decisions about runs: who holds one, and what becomes of its attempts.

A run is held by one process under a lease, which it renews. When the lease runs out, when the next attempt
after a failed one is due, or where nobody has held the run yet, whichever process is first takes it up.
Where no attempt is left, a run whose process vanished is recorded as lost.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from eventstore.events import RunAttemptFailed, RunOutcome, RunRenewed, RunRetried
from projections.jobs import JOBS, JobRow
from projections.runs import RUNS, RunRow
from service.decide import holding, operations
from service.decide.decision import Accepted, At, Decision, Refused
from service.decide.ending import Ending, end, give_up, spend, worker_of
from service.decide.unfolding import Unfolding
from service.memory.state import free_at
from service.refusals import Refusal

if TYPE_CHECKING:
    from service.commands import EndAttempt, RenewRun, TakeUpRun
    from service.memory.state import State

LEASE_SECONDS = 15.0
"""How long a run stays with a process that says nothing. Renewed at a third of it."""

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


def renewal_seconds(state: State, row: RunRow) -> float:
    """How often a process renews what it holds for a run: thrice before the first of it would run out."""
    of_lease = LEASE_SECONDS / 3
    return min(of_lease, operations.renewal_seconds(state.policy)) if row.operation_id else of_lease


def take_up(state: State, command: TakeUpRun, at: At) -> Decision:
    """Gives a run to a process, if nobody holds it and an attempt is due; or ends it where none may be."""
    row = state.rows(RUNS).get(command.run_id)
    if row is None or row.status != "running" or not is_free(row, at.now):
        return Accepted([], {"position": state.head.position})
    unfolding = Unfolding(state, at)
    job = state.rows(JOBS).get(row.job)
    next_attempt = f"before attempt {row.attempts + 1} of {row.attempts_allowed}"
    orchestrator = state.orchestrator
    if row.lease_expires_at is not None and row.attempts >= row.attempts_allowed:
        reason = "the process that ran it vanished"
        give_up(unfolding, row, Ending("lost", f"{row.job} was lost: {reason}", reason))
    elif job is None or job.removed:
        _fail(unfolding, row, f"the job was removed {next_attempt}")
    elif job.agent != row.agent:
        _fail(unfolding, row, f"the job's agent was changed {next_attempt}")
    elif orchestrator is None or not orchestrator.running:
        _fail(unfolding, row, f"the orchestrator was shut down {next_attempt}")
    elif row.attempts == 0 and at.now - row.tick > timedelta(seconds=job.catch_up_seconds):
        reason = f"no process took it up within {job.catch_up_seconds:g} seconds"
        give_up(unfolding, row, Ending("missed", f"{row.job} was missed: {reason}", reason))
    else:
        _attempt(unfolding, row, job, command.runner)
    return Accepted(unfolding.events, {})


def _fail(unfolding: Unfolding, row: RunRow, reason: str) -> None:
    give_up(unfolding, row, Ending("failed", f"{row.job} failed: {reason}", reason))


def _attempt(unfolding: Unfolding, row: RunRow, job: JobRow, runner: str) -> None:
    """Begins the next attempt; it has failed already where somebody else is at the job's resources."""
    number = row.attempts + 1
    # A process that vanished may still believe that it holds what the run claimed.
    holding.let_go(unfolding, row, "failed", row.position)
    if conflict := holding.in_the_way(unfolding, job):
        caused_by = holding.turn_away(unfolding, job, conflict)
        _has_failed(unfolding, row, number, f"conflict: {operations.in_a_sentence(conflict)}", caused_by)
        return
    operation_id = holding.begin(unfolding, job, row.position)
    retried = RunRetried(
        run_id=row.id,
        job=row.job,
        attempt=number,
        runner=runner,
        lease_expires_at=lease_until(unfolding.at.now),
        lease_ran_out=row.lease_expires_at is not None,
        operation_id=operation_id,
    )
    unfolding.add(retried, row.position)


def is_free(row: RunRow, now: datetime) -> bool:
    """Whether a run waits for somebody to take it up."""
    due = free_at(row)
    return due is not None and due <= now


def renew(state: State, command: RenewRun, at: At) -> Decision:
    """Extends the lease of a run that its process still holds, and the claim that goes with it."""
    row = _held(state, command)
    if row is None:
        return _not_held(command.run_id)
    unfolding = Unfolding(state, at)
    if lost := holding.renew(unfolding, row):
        _has_failed(unfolding, row, row.attempts, lost.reason, lost.caused_by)
        return Refused(
            Refusal("run_not_held", f"run {row.id} was given up: {lost.reason}"), unfolding.events
        )
    until = lease_until(at.now)
    unfolding.add(RunRenewed(run_id=row.id, job=row.job, lease_expires_at=until), row.position)
    return Accepted(unfolding.events, {"lease_expires_at": until})


def end_attempt(state: State, command: EndAttempt, at: At) -> Decision:
    """Ends an attempt: the run is over, or its next attempt waits."""
    row = _held(state, command)
    if row is None or row.attempts != command.attempt:
        return _not_held(command.run_id)
    unfolding = Unfolding(state, at)
    if command.succeeded or row.attempts >= row.attempts_allowed:
        outcome: RunOutcome = "succeeded" if command.succeeded else "failed"
        reason, tokens, answered = command.reason, command.tokens_used, command.answered
        ending = Ending(outcome, command.report, reason, tokens, command.data, answered)
        if command.ours:
            give_up(unfolding, row, ending)
        else:
            end(unfolding, row, ending)
        return Accepted(unfolding.events, {"status": outcome})
    if command.tokens_used:
        unfolding.arrive(worker_of(row))
        spend(unfolding, row, command.tokens_used)
    failed = _attempt_failed(
        unfolding, row, row.attempts, command.reason or "it failed", tokens_used=command.tokens_used
    )
    holding.let_go(unfolding, row, "failed", unfolding.add(failed, row.position))
    return Accepted(unfolding.events, {"status": "running", "retry_at": failed.retry_at})


def _has_failed(
    unfolding: Unfolding, row: RunRow, attempt: int, reason: str, caused_by: int | None
) -> None:
    """An attempt failed by its claim, which is no word on the job: the next waits, or the run is over."""
    if attempt < row.attempts_allowed:
        failed = unfolding.add(_attempt_failed(unfolding, row, attempt, reason), caused_by or row.position)
        holding.let_go(unfolding, row, "failed", failed)
    else:
        report = f"{row.job} failed: {reason}"
        ending = Ending("failed", report, reason, caused_by=caused_by)
        give_up(unfolding, row.replaced(attempts=attempt), ending)


def _attempt_failed(
    unfolding: Unfolding, row: RunRow, attempt: int, reason: str, *, tokens_used: int | None = None
) -> RunAttemptFailed:
    return RunAttemptFailed(
        run_id=row.id,
        job=row.job,
        attempt=attempt,
        reason=reason,
        retry_at=unfolding.at.now + backoff(row.id, attempt),
        tokens_used=tokens_used,
    )


def _held(state: State, command: RenewRun | EndAttempt) -> RunRow | None:
    row = state.rows(RUNS).get(command.run_id)
    held = row is not None and row.status == "running" and row.runner == command.runner
    return row if held else None


def _not_held(run_id: str) -> Refused:
    return Refused(Refusal("run_not_held", f"this process does not hold run {run_id}"))

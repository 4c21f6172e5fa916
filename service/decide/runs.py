"""Decisions about runs: which process holds one, and how its attempts end.

One process holds a run under a lease, which it renews. If the lease has expired, the next attempt after a
failed one is due, or no process has held the run yet, the first process to claim it takes it up. If a
process vanished and its run has no attempt left, the run is recorded as lost.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from eventstore.events import RunAttemptFailed, RunOutcome, RunRenewed, RunRetried
from projections.jobs import JOBS, JobRow
from projections.runs import RUNS, RunRow
from service.decide import operations, run_claims
from service.decide.builder import DecisionBuilder
from service.decide.decision import Accepted, Decision, DecisionContext, Refused
from service.decide.ending import Ending, end, give_up, spend, worker_of
from service.memory.state import free_at
from service.refusals import Refusal

if TYPE_CHECKING:
    from service.commands import EndAttempt, RenewRun, TakeUpRun
    from service.memory.draft import Draft
    from service.memory.state import State

LEASE_SECONDS = 15.0
"""How long a process holds a run without renewing it. It renews after a third of that."""

INITIAL_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 300.0


def lease_until(now: datetime) -> datetime:
    """Return when a lease that is taken or renewed now expires."""
    return now + timedelta(seconds=LEASE_SECONDS)


def backoff(run_id: str, attempt: int) -> timedelta:
    """Return the wait after a failed attempt: 1, 2, 4 ... seconds, reduced by up to half by jitter.

    The jitter is derived from the run and the attempt, so that a decision made twice is the same.
    """
    seconds = min(INITIAL_BACKOFF_SECONDS * 2.0 ** (attempt - 1), MAX_BACKOFF_SECONDS)
    share = sha256(f"{run_id}/{attempt}".encode()).digest()[0] / 255
    return timedelta(seconds=seconds * (0.5 + share / 2))


def renewal_seconds(state: State, row: RunRow) -> float:
    """Return how often a process renews what it holds for a run: three times before any of it expires."""
    of_lease = LEASE_SECONDS / 3
    return min(of_lease, operations.renewal_seconds(state.policy)) if row.operation_id else of_lease


def take_up(draft: Draft, command: TakeUpRun, at: DecisionContext) -> Decision:
    """Give a run that is free and has an attempt due to a process; end it if no attempt is possible."""
    row = draft.rows(RUNS).get(command.run_id)
    if row is None or row.status != "running" or not is_free(row, at.now):
        return Accepted([], {"position": draft.head.position})
    builder = DecisionBuilder(draft, at)
    job = draft.rows(JOBS).get(row.job)
    next_attempt = f"before attempt {row.attempts + 1} of {row.attempts_allowed}"
    orchestrator = draft.orchestrator
    if row.lease_expires_at is not None and row.attempts >= row.attempts_allowed:
        reason = "the process that ran it vanished"
        give_up(builder, row, Ending("lost", f"{row.job} was lost: {reason}", reason))
    elif job is None or job.removed:
        _fail_run(builder, row, f"the job was removed {next_attempt}")
    elif job.agent != row.agent:
        _fail_run(builder, row, f"the job's agent was changed {next_attempt}")
    elif orchestrator is None or not orchestrator.running:
        _fail_run(builder, row, f"the orchestrator was shut down {next_attempt}")
    elif row.attempts == 0 and at.now - row.tick > timedelta(seconds=job.catch_up_seconds):
        reason = f"no process took it up within {job.catch_up_seconds:g} seconds"
        give_up(builder, row, Ending("missed", f"{row.job} was missed: {reason}", reason))
    else:
        _start_attempt(builder, row, job, command.runner)
    return builder.accept({})


def _fail_run(builder: DecisionBuilder, row: RunRow, reason: str) -> None:
    give_up(builder, row, Ending("failed", f"{row.job} failed: {reason}", reason))


def _start_attempt(builder: DecisionBuilder, row: RunRow, job: JobRow, runner: str) -> None:
    """Start the next attempt; it fails at once if another claim conflicts with the job's resources."""
    number = row.attempts + 1
    # A vanished process may still believe that it holds the run's claim.
    run_claims.release(builder, row, "failed", row.position)
    if conflict := run_claims.find_conflict(builder, job):
        detected = run_claims.conflict_event(job, conflict, builder.at)
        caused_by = run_claims.record_refusal(builder, job, detected)
        _fail_attempt(
            builder, row, number, f"conflict: {operations.conflict_sentence(conflict)}", caused_by
        )
        return
    operation_id = run_claims.begin(builder, job, row.position)
    retried = RunRetried(
        run_id=row.id,
        job=row.job,
        attempt=number,
        runner=runner,
        lease_expires_at=lease_until(builder.at.now),
        lease_ran_out=row.lease_expires_at is not None,
        operation_id=operation_id,
    )
    builder.add(retried, row.position)


def is_free(row: RunRow, now: datetime) -> bool:
    """Whether a run waits for a process to take it up."""
    due = free_at(row)
    return due is not None and due <= now


def renew(draft: Draft, command: RenewRun, at: DecisionContext) -> Decision:
    """Extend the lease of a run that the process still holds, and the run's claim with it."""
    row = _held(draft, command)
    if row is None:
        return _not_held(command.run_id)
    builder = DecisionBuilder(draft, at)
    if lost := run_claims.renew(builder, row):
        _fail_attempt(builder, row, row.attempts, lost.reason, lost.caused_by)
        return builder.refuse(Refusal("run_not_held", f"run {row.id} was given up: {lost.reason}"))
    until = lease_until(at.now)
    builder.add(RunRenewed(run_id=row.id, job=row.job, lease_expires_at=until), row.position)
    return builder.accept({"lease_expires_at": until})


def end_attempt(draft: Draft, command: EndAttempt, at: DecisionContext) -> Decision:
    """End an attempt: the run ends, or waits for its next attempt."""
    row = _held(draft, command)
    if row is None or row.attempts != command.attempt:
        return _not_held(command.run_id)
    builder = DecisionBuilder(draft, at)
    used = command.usage
    if command.succeeded or row.attempts >= row.attempts_allowed:
        outcome: RunOutcome = "succeeded" if command.succeeded else "failed"
        ending = Ending(
            outcome, command.report, command.reason, used, command.data, answered=command.answered
        )
        if command.ours:
            give_up(builder, row, ending)
        else:
            end(builder, row, ending)
        return builder.accept({"status": outcome})
    tokens = used.tokens_used if used else None
    if used and tokens:
        builder.ensure_active(worker_of(row))
        spend(builder, row, used)
    failed = _attempt_failed(builder, row, row.attempts, command.reason or "it failed", tokens_used=tokens)
    run_claims.release(builder, row, "failed", builder.add(failed, row.position))
    return builder.accept({"status": "running", "retry_at": failed.retry_at})


def _fail_attempt(
    builder: DecisionBuilder, row: RunRow, attempt: int, reason: str, caused_by: int | None
) -> None:
    """Fail an attempt for its claim, which says nothing about the job: the run waits to retry, or ends."""
    if attempt < row.attempts_allowed:
        failed = builder.add(_attempt_failed(builder, row, attempt, reason), caused_by or row.position)
        run_claims.release(builder, row, "failed", failed)
    else:
        report = f"{row.job} failed: {reason}"
        ending = Ending("failed", report, reason, caused_by=caused_by)
        give_up(builder, row.replaced(attempts=attempt), ending)


def _attempt_failed(
    builder: DecisionBuilder, row: RunRow, attempt: int, reason: str, *, tokens_used: int | None = None
) -> RunAttemptFailed:
    return RunAttemptFailed(
        run_id=row.id,
        job=row.job,
        attempt=attempt,
        reason=reason,
        retry_at=builder.at.now + backoff(row.id, attempt),
        tokens_used=tokens_used,
    )


def _held(state: State, command: RenewRun | EndAttempt) -> RunRow | None:
    row = state.rows(RUNS).get(command.run_id)
    held = row is not None and row.status == "running" and row.runner == command.runner
    return row if held else None


def _not_held(run_id: str) -> Refused:
    return Refused(Refusal("run_not_held", f"this process does not hold run {run_id}"))

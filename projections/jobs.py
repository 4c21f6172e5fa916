"""jobs and job_runs: what runs when, and the outcome of every tick."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from eventstore.events import (
    JobDefined,
    JobPaused,
    JobRemoved,
    JobResumed,
    JobSource,
    Overlap,
    RemovalSource,
    RunAttemptFailed,
    RunFinished,
    RunMissed,
    RunRenewed,
    RunRetried,
    RunSkipped,
    RunStarted,
    TickBuffered,
)
from projections.projection import Projection, Row, Table, key_in, require
from projections.runs import RUNS, RunRow

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View


class JobRow(Row, frozen=True):
    """A job. Every tick up to `ticked_until` has an outcome, or waits as the `buffered_tick`."""

    name: str
    source: JobSource
    agent: str | None
    endpoint: str | None
    task: str | None
    cron: str | None
    every_seconds: float | None
    timezone: str
    tokens: int
    timeout_seconds: float
    retries: int
    overlap: Overlap
    catch_up_seconds: float
    jitter_seconds: float
    pause_on_failure: bool
    enabled: bool
    resources: dict[str, str] | None
    removed: bool
    removed_by: RemovalSource | None
    paused: bool
    pause_note: str | None
    ticked_until: datetime
    buffered_tick: datetime | None
    position: int


JOBS = Table[str, JobRow](
    "jobs",
    JobRow,
    key=("name",),
    types=(
        *("text",) * 6,
        "double precision",
        "text",
        "bigint",
        "double precision",
        "integer",
        "text",
        "double precision",
        "double precision",
        *("boolean",) * 2,
        "jsonb",
        "boolean",
        "text",
        "boolean",
        "text",
        "timestamptz",
        "timestamptz",
        "bigint",
    ),
    large_columns=("resources",),
)
jobs = Projection("jobs", (JOBS, RUNS), fold_version=2)


class _OfJob(Protocol):
    @property
    def job(self) -> str: ...


_JOB_ROW = (key_in(JOBS, "job"),)
_RUN_ROW = (key_in(RUNS, "run_id"),)


@jobs.on(JobDefined, reads=_JOB_ROW)
def _defined(view: View, event: JobDefined, recorded: AnyRecorded) -> None:
    before = view.rows(JOBS).get(event.job)
    known = before is not None and not before.removed
    row = JobRow(
        name=event.job,
        source=event.source,
        **structs.asdict(event.definition),
        removed=False,
        removed_by=None,
        paused=before.paused if before and known else False,
        pause_note=before.pause_note if before and known else None,
        # A new schedule starts here; one that continues still owes an outcome for every tick until now.
        ticked_until=before.ticked_until
        if before and _keeps_schedule(before, event)
        else recorded.recorded_at,
        buffered_tick=before.buffered_tick if before and known else None,
        position=recorded.position,
    )
    view.rows(JOBS).put(event.job, row)


def _keeps_schedule(before: JobRow, event: JobDefined) -> bool:
    """Return whether the job keeps its current schedule."""
    definition = event.definition
    same = (before.cron, before.every_seconds, before.timezone) == (
        definition.cron,
        definition.every_seconds,
        definition.timezone,
    )
    return same and before.enabled and not before.removed


@jobs.on(JobRemoved, reads=_JOB_ROW)
def _removed(view: View, event: JobRemoved, recorded: AnyRecorded) -> None:
    before = view.rows(JOBS).get(event.job)
    if before is None:
        # The settings withdrew a job that was off the schedule already; such a job is not kept in memory.
        return
    row = before.replaced(
        removed=True, removed_by=event.source, buffered_tick=None, position=recorded.position
    )
    view.rows(JOBS).put(event.job, row)


@jobs.on(JobPaused, reads=_JOB_ROW)
def _paused(view: View, event: JobPaused, recorded: AnyRecorded) -> None:
    row = require(view, JOBS, event.job).replaced(
        paused=True, pause_note=event.note, position=recorded.position
    )
    view.rows(JOBS).put(event.job, row)


@jobs.on(JobResumed, reads=_JOB_ROW)
def _resumed(view: View, event: JobResumed, recorded: AnyRecorded) -> None:
    row = require(view, JOBS, event.job).replaced(
        paused=False, pause_note=event.note, position=recorded.position
    )
    view.rows(JOBS).put(event.job, row)


@jobs.on(TickBuffered, reads=_JOB_ROW)
def _buffered(view: View, event: TickBuffered, recorded: AnyRecorded) -> None:
    row = require(view, JOBS, event.job).replaced(buffered_tick=event.tick, position=recorded.position)
    view.rows(JOBS).put(event.job, row)
    _ticked(view, event.job, event.tick)


@jobs.on(RunMissed, RunSkipped, reads=_JOB_ROW)
def _did_not_run(view: View, event: RunMissed | RunSkipped, recorded: AnyRecorded) -> None:
    reason = f"{event.reason}: {event.detail}" if isinstance(event, RunSkipped) else None
    row = RunRow(
        id=event.run_id,
        job=event.job,
        tick=event.tick,
        status="skipped" if reason else "missed",
        manual=False,
        agent=None,
        attempts=0,
        attempts_allowed=0,
        reason=reason,
        runner=None,
        lease_expires_at=None,
        retry_at=None,
        reservation_id=None,
        operation_id=None,
        tokens_used=None,
        started_at=None,
        finished_at=recorded.recorded_at,
        fencing_token=recorded.position,
        position=recorded.position,
    )
    view.rows(RUNS).put(event.run_id, row)
    _ticked(view, event.job, event.tick)


@jobs.on(RunStarted, reads=_JOB_ROW, creates=_RUN_ROW)
def _started(view: View, event: RunStarted, recorded: AnyRecorded) -> None:
    row = RunRow(
        id=event.run_id,
        job=event.job,
        tick=event.tick,
        status="running",
        manual=event.manual,
        agent=event.agent,
        attempts=1 if event.runner else 0,
        attempts_allowed=event.attempts_allowed,
        reason=None,
        runner=event.runner,
        lease_expires_at=event.lease_expires_at,
        # Whichever process is first may take it up from now on.
        retry_at=None if event.runner else recorded.recorded_at,
        reservation_id=event.reservation_id,
        operation_id=event.operation_id,
        tokens_used=None,
        started_at=recorded.recorded_at if event.runner else None,
        finished_at=None,
        fencing_token=recorded.position,
        position=recorded.position,
    )
    view.rows(RUNS).put(event.run_id, row)
    if not event.manual:
        _ticked(view, event.job, event.tick)


@jobs.on(RunRenewed, reads=_RUN_ROW)
def _renewed(view: View, event: RunRenewed, recorded: AnyRecorded) -> None:
    row = require(view, RUNS, event.run_id)
    row = row.replaced(lease_expires_at=event.lease_expires_at, position=recorded.position)
    view.rows(RUNS).put(event.run_id, row)


@jobs.on(RunAttemptFailed, reads=_RUN_ROW)
def _attempt_failed(view: View, event: RunAttemptFailed, recorded: AnyRecorded) -> None:
    row = require(view, RUNS, event.run_id)
    used = row.tokens_used if event.tokens_used is None else (row.tokens_used or 0) + event.tokens_used
    row = row.replaced(
        # One more if the attempt failed before it started, because its resources were claimed.
        attempts=event.attempt,
        runner=None,
        lease_expires_at=None,
        retry_at=event.retry_at,
        reason=event.reason,
        tokens_used=used,
        position=recorded.position,
    )
    view.rows(RUNS).put(event.run_id, row)


@jobs.on(RunRetried, reads=_RUN_ROW)
def _retried(view: View, event: RunRetried, recorded: AnyRecorded) -> None:
    row = require(view, RUNS, event.run_id)
    row = row.replaced(
        attempts=event.attempt,
        runner=event.runner,
        lease_expires_at=event.lease_expires_at,
        retry_at=None,
        operation_id=event.operation_id,
        started_at=row.started_at or recorded.recorded_at,
        position=recorded.position,
    )
    view.rows(RUNS).put(event.run_id, row)


@jobs.on(RunFinished, reads=_RUN_ROW)
def _finished(view: View, event: RunFinished, recorded: AnyRecorded) -> None:
    row = require(view, RUNS, event.run_id).replaced(
        status=event.outcome,
        attempts=event.attempts,
        reason=event.reason,
        runner=None,
        lease_expires_at=None,
        retry_at=None,
        tokens_used=event.tokens_used,
        finished_at=recorded.recorded_at,
        position=recorded.position,
    )
    view.rows(RUNS).put(event.run_id, row)


def _ticked(view: View, name: str, tick: datetime) -> None:
    """Note that a tick has its outcome; if it was buffered, it no longer waits."""
    row = require(view, JOBS, name)
    waited = row.buffered_tick == tick and tick <= row.ticked_until
    buffered = None if waited else row.buffered_tick
    view.rows(JOBS).put(
        name, row.replaced(ticked_until=max(row.ticked_until, tick), buffered_tick=buffered)
    )

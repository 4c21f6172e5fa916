"""What happens to jobs, and what comes of their ticks."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct

from eventstore.events.base import Event

JobSource = Literal["default", "settings", "api"]
RemovalSource = Literal["settings", "api"]
Overlap = Literal["skip", "buffer_one", "cancel_other", "allow_all"]
SkipReason = Literal["overlap", "budget", "conflict", "paused", "shut_down"]
RunOutcome = Literal["succeeded", "failed", "lost", "missed"]


class JobDefinition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job does and when. Durations in seconds; either `cron` or `every_seconds`."""

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
    """What its runs claim while they are under way, by kind."""


class _JobEvent(Event, frozen=True, kw_only=True):
    job: str

    @property
    def stream(self) -> str:
        return f"job-{self.job}"


class JobDefined(_JobEvent, frozen=True, kw_only=True):
    """A job was put on the schedule, or changed; it holds the whole job as it now is."""

    type: ClassVar[str] = "job_defined"
    schema_version: ClassVar[int] = 2
    source: JobSource
    definition: JobDefinition


class JobRemoved(_JobEvent, frozen=True, kw_only=True):
    """A job was taken off the schedule: by somebody, or because the settings do not have it any more."""

    type: ClassVar[str] = "job_removed"
    schema_version: ClassVar[int] = 2
    source: RemovalSource


class JobPaused(_JobEvent, frozen=True, kw_only=True):
    """A job's ticks are skipped from here on: somebody said so, or a run failed that was to pause it."""

    type: ClassVar[str] = "job_paused"
    reason: Literal["manual", "failure"]
    note: str | None


class JobResumed(_JobEvent, frozen=True, kw_only=True):
    """A job's ticks run again."""

    type: ClassVar[str] = "job_resumed"
    note: str | None


class TickBuffered(_JobEvent, frozen=True, kw_only=True):
    """A tick came while the job was running; it runs as soon as that is over."""

    type: ClassVar[str] = "tick_buffered"
    tick: datetime


class _RunEvent(Event, frozen=True, kw_only=True):
    run_id: str
    job: str

    @property
    def stream(self) -> str:
        return f"run-{self.run_id}"


class RunMissed(_RunEvent, frozen=True, kw_only=True):
    """Nobody was there for a tick: for longer than the job's catch-up time, or until its schedule ended."""

    type: ClassVar[str] = "run_missed"
    tick: datetime


class RunSkipped(_RunEvent, frozen=True, kw_only=True):
    """A tick did not run, and why."""

    type: ClassVar[str] = "run_skipped"
    tick: datetime
    reason: SkipReason
    detail: str


class RunStarted(_RunEvent, frozen=True, kw_only=True):
    """A tick was claimed by one process, `runner`, until `lease_expires_at`.

    Without a runner it is a run that somebody asked for, and that waits for a process to take it up.
    """

    type: ClassVar[str] = "run_started"
    schema_version: ClassVar[int] = 2
    agent: str | None
    tick: datetime
    manual: bool
    runner: str | None
    attempts_allowed: int
    lease_expires_at: datetime | None
    reservation_id: str | None
    operation_id: str | None
    """The claim on the job's resources, where it names any."""


class RunRenewed(_RunEvent, frozen=True, kw_only=True):
    """The process is still at it."""

    type: ClassVar[str] = "run_renewed"
    lease_expires_at: datetime


class RunAttemptFailed(_RunEvent, frozen=True, kw_only=True):
    """An attempt failed; the next begins at `retry_at`, by whichever process is first."""

    type: ClassVar[str] = "run_attempt_failed"
    attempt: int
    reason: str
    retry_at: datetime
    tokens_used: int | None


class RunRetried(_RunEvent, frozen=True, kw_only=True):
    """A process took up the next attempt: after a failure, or because the lease of the last one ran out.

    Of a run that nobody held so far it is the first.
    """

    type: ClassVar[str] = "run_retried"
    schema_version: ClassVar[int] = 2
    attempt: int
    runner: str
    lease_expires_at: datetime
    lease_ran_out: bool
    operation_id: str | None
    """The attempt's own claim on the job's resources, where it names any."""


class RunFinished(_RunEvent, frozen=True, kw_only=True):
    """How a run ended, and what all its attempts used.

    `lost`: its process vanished in the last one. `missed`: no process took it up in time.
    """

    type: ClassVar[str] = "run_finished"
    schema_version: ClassVar[int] = 2
    agent: str | None
    outcome: RunOutcome
    attempts: int
    reason: str | None
    tokens_used: int | None
    answered: bool
    """Whether the agent was called in the last attempt and did what it was asked: a sign of its life."""

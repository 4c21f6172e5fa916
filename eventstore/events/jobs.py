"""The events of jobs and of their runs."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct

from eventstore.events.base import Event

JobSource = Literal["default", "settings", "api"]
RemovalSource = Literal["settings", "api"]
Overlap = Literal["skip", "buffer_one", "cancel_other", "allow_all"]
SkipReason = Literal["overlap", "budget", "conflict", "paused", "shut_down", "schedule_ended"]
RunOutcome = Literal["succeeded", "failed", "lost", "missed"]


class JobDefinition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job does and when. Durations are in seconds; either `cron` or `every_seconds` is set."""

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
    """The resources that its runs claim while they are running, by kind."""


class _JobEvent(Event, frozen=True, kw_only=True):
    job: str

    @property
    def stream(self) -> str:
        return f"job-{self.job}"


class JobDefined(_JobEvent, frozen=True, kw_only=True):
    """A job was added to the schedule or changed. The event has its whole definition."""

    type: ClassVar[str] = "job_defined"
    schema_version: ClassVar[int] = 2
    source: JobSource
    definition: JobDefinition


class JobRemoved(_JobEvent, frozen=True, kw_only=True):
    """A job was removed from the schedule: by a request, or because the settings no longer name it."""

    type: ClassVar[str] = "job_removed"
    schema_version: ClassVar[int] = 2
    source: RemovalSource


class JobPaused(_JobEvent, frozen=True, kw_only=True):
    """A job was paused, by a request or by a failed run (`pause_on_failure`): its ticks are skipped."""

    type: ClassVar[str] = "job_paused"
    reason: Literal["manual", "failure"]
    note: str | None


class JobResumed(_JobEvent, frozen=True, kw_only=True):
    """A paused job was resumed: its ticks run again."""

    type: ClassVar[str] = "job_resumed"
    note: str | None


class TickBuffered(_JobEvent, frozen=True, kw_only=True):
    """A tick came due while a run of the job was active; it runs as soon as that run ends."""

    type: ClassVar[str] = "tick_buffered"
    tick: datetime


class _RunEvent(Event, frozen=True, kw_only=True):
    run_id: str
    job: str

    @property
    def stream(self) -> str:
        return f"run-{self.run_id}"


class RunMissed(_RunEvent, frozen=True, kw_only=True):
    """No process ran a tick within the job's catch-up time.

    Older logs have it also for ticks within that time whose schedule ended.
    """

    type: ClassVar[str] = "run_missed"
    tick: datetime


class RunSkipped(_RunEvent, frozen=True, kw_only=True):
    """A tick was skipped, and why."""

    type: ClassVar[str] = "run_skipped"
    schema_version: ClassVar[int] = 2
    tick: datetime
    reason: SkipReason
    detail: str


class RunStarted(_RunEvent, frozen=True, kw_only=True):
    """A process, `runner`, claimed a tick under a lease until `lease_expires_at`.

    Without a runner, it is a run that was requested by hand and waits for a process.
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
    """The claim on the job's resources, if it has any."""


class RunRenewed(_RunEvent, frozen=True, kw_only=True):
    """The process that runs an attempt renewed its lease."""

    type: ClassVar[str] = "run_renewed"
    lease_expires_at: datetime


class RunAttemptFailed(_RunEvent, frozen=True, kw_only=True):
    """An attempt failed; the first process to claim the next one at `retry_at` runs it."""

    type: ClassVar[str] = "run_attempt_failed"
    attempt: int
    reason: str
    retry_at: datetime
    tokens_used: int | None


class RunRetried(_RunEvent, frozen=True, kw_only=True):
    """A process claimed the next attempt: after a failure, or because the lease of the last one expired.

    For a run without a runner so far, it is the first attempt.
    """

    type: ClassVar[str] = "run_retried"
    schema_version: ClassVar[int] = 2
    attempt: int
    runner: str
    lease_expires_at: datetime
    lease_ran_out: bool
    operation_id: str | None
    """The attempt's own claim on the job's resources, if it has any."""


class RunFinished(_RunEvent, frozen=True, kw_only=True):
    """A run ended. `tokens_used` is the total of all attempts.

    `lost`: its process vanished during the last attempt. `missed`: no process claimed it in time.
    """

    type: ClassVar[str] = "run_finished"
    schema_version: ClassVar[int] = 2
    agent: str | None
    outcome: RunOutcome
    attempts: int
    reason: str | None
    tokens_used: int | None
    answered: bool
    """Whether the agent was called in the last attempt and succeeded, which shows that it is alive."""

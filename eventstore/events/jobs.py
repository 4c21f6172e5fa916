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
    """The agent that is called; null for a task that calls none."""
    endpoint: str | None
    """The path below the agent's URL."""
    task: str | None
    """The built-in task that it carries out."""
    cron: str | None
    """When it runs, by local time in `timezone`."""
    every_seconds: float | None
    """The interval at which it runs."""
    timezone: str
    """The time zone of `cron`."""
    tokens: int
    """Reserved before each run."""
    timeout_seconds: float
    """How long an attempt may take."""
    retries: int
    """How often a failed attempt is retried."""
    overlap: Overlap
    """What happens to a tick while a run is in progress."""
    catch_up_seconds: float
    """How late a tick may still run."""
    jitter_seconds: float
    """The longest delay of a run, derived from its tick."""
    pause_on_failure: bool
    """Whether a run that fails pauses it."""
    enabled: bool
    """Whether it runs at all."""
    resources: dict[str, str] | None
    """The resources that its runs claim while they are running, by kind."""


class _JobEvent(Event, frozen=True, kw_only=True):
    job: str
    """The job's name."""

    @property
    def stream(self) -> str:
        return f"job-{self.job}"


class JobDefined(_JobEvent, frozen=True, kw_only=True):
    """A job was added to the schedule or changed. The event has its whole definition."""

    type: ClassVar[str] = "job_defined"
    schema_version: ClassVar[int] = 2
    source: JobSource
    """Who defined it: the software, the settings, or a request."""
    definition: JobDefinition
    """What it does and when, in full."""


class JobRemoved(_JobEvent, frozen=True, kw_only=True):
    """A job was removed from the schedule: by a request, or because the settings no longer name it."""

    type: ClassVar[str] = "job_removed"
    schema_version: ClassVar[int] = 2
    source: RemovalSource
    """Who removed it."""


class JobPaused(_JobEvent, frozen=True, kw_only=True):
    """A job was paused, by a request or by a failed run (`pause_on_failure`): its ticks are skipped."""

    type: ClassVar[str] = "job_paused"
    reason: Literal["manual", "failure"]
    """Who paused it: a request, or a failed run."""
    note: str | None
    """Why, in words."""


class JobResumed(_JobEvent, frozen=True, kw_only=True):
    """A paused job was resumed: its ticks run again."""

    type: ClassVar[str] = "job_resumed"
    note: str | None
    """Why, in words."""


class TickBuffered(_JobEvent, frozen=True, kw_only=True):
    """A tick came due while a run of the job was active; it runs as soon as that run ends."""

    type: ClassVar[str] = "tick_buffered"
    tick: datetime
    """When it was due."""


class _RunEvent(Event, frozen=True, kw_only=True):
    run_id: str
    """The run's id in `job_runs`."""
    job: str
    """The job's name."""

    @property
    def stream(self) -> str:
        return f"run-{self.run_id}"


class RunMissed(_RunEvent, frozen=True, kw_only=True):
    """No process ran a tick within the job's catch-up time.

    Older logs have it also for ticks within that time whose schedule ended.
    """

    type: ClassVar[str] = "run_missed"
    tick: datetime
    """When it was due."""


class RunSkipped(_RunEvent, frozen=True, kw_only=True):
    """A tick was skipped, and why."""

    type: ClassVar[str] = "run_skipped"
    schema_version: ClassVar[int] = 2
    tick: datetime
    """When it was due."""
    reason: SkipReason
    """Why."""
    detail: str
    """Why, in words."""


class RunStarted(_RunEvent, frozen=True, kw_only=True):
    """A process, `runner`, claimed a tick under a lease until `lease_expires_at`.

    Without a runner, it is a run that was requested by hand and waits for a process.
    """

    type: ClassVar[str] = "run_started"
    schema_version: ClassVar[int] = 2
    agent: str | None
    """The agent that it works for; null if its job names none."""
    tick: datetime
    """When it was due, or requested."""
    manual: bool
    """Whether it was requested by hand."""
    runner: str | None
    """The process that runs it."""
    attempts_allowed: int
    """How many attempts it may take."""
    lease_expires_at: datetime | None
    """When another process may take it over, unless the lease is renewed."""
    reservation_id: str | None
    """The tokens reserved for it, if any."""
    operation_id: str | None
    """The claim on the job's resources, if it has any."""


class RunRenewed(_RunEvent, frozen=True, kw_only=True):
    """The process that runs an attempt renewed its lease."""

    type: ClassVar[str] = "run_renewed"
    lease_expires_at: datetime
    """When another process may take it over, unless the lease is renewed again."""


class RunAttemptFailed(_RunEvent, frozen=True, kw_only=True):
    """An attempt failed; the first process to claim the next one at `retry_at` runs it."""

    type: ClassVar[str] = "run_attempt_failed"
    attempt: int
    """Its number, from 1."""
    reason: str
    """Why, in words."""
    retry_at: datetime
    """When the next one is due."""
    tokens_used: int | None
    """The tokens that the agent reported, if any."""


class RunRetried(_RunEvent, frozen=True, kw_only=True):
    """A process claimed the next attempt: after a failure, or because the lease of the last one expired.

    For a run without a runner so far, it is the first attempt.
    """

    type: ClassVar[str] = "run_retried"
    schema_version: ClassVar[int] = 2
    attempt: int
    """Its number, from 1."""
    runner: str
    """The process that runs it."""
    lease_expires_at: datetime
    """When another process may take it over, unless the lease is renewed."""
    lease_ran_out: bool
    """Whether the process of the last attempt let its lease expire."""
    operation_id: str | None
    """The attempt's own claim on the job's resources, if it has any."""


class RunFinished(_RunEvent, frozen=True, kw_only=True):
    """A run ended. `tokens_used` is the total of all attempts.

    `lost`: its process vanished during the last attempt. `missed`: no process claimed it in time.
    """

    type: ClassVar[str] = "run_finished"
    schema_version: ClassVar[int] = 2
    agent: str | None
    """The agent that it worked for; null if its job named none."""
    outcome: RunOutcome
    """How it ended."""
    attempts: int
    """How many attempts there were."""
    reason: str | None
    """Why it did not succeed, in words."""
    tokens_used: int | None
    """The tokens that the agent reported for all attempts, if any."""
    answered: bool
    """Whether the agent was called in the last attempt and succeeded, which shows that it is alive."""

"""What the log may say of jobs, told from the events alone and in other words than the folds'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.events import (
    Event,
    JobDefined,
    JobDefinition,
    JobPaused,
    JobRemoved,
    JobResumed,
    OrchestratorStarted,
    OrchestratorStopped,
    RunAttemptFailed,
    RunFinished,
    RunMissed,
    RunRenewed,
    RunRetried,
    RunSkipped,
    RunStarted,
    TickBuffered,
)
from service.schedule import next_tick, schedule_of

if TYPE_CHECKING:
    from datetime import datetime


class JobRules:
    """Every tick has one outcome or waits; a run has one holder at a time, and one end."""

    def __init__(self) -> None:
        self.runs: dict[str, tuple[RunStarted, int]] = {}
        """The runs under way, each with its present attempt."""
        self._held: dict[str, datetime] = {}
        """Until when a process holds those that one holds."""
        self._orchestrator_runs = False
        self._jobs: dict[str, JobDefinition] = {}
        self._paused: set[str] = set()
        self._ticking_since: dict[str, datetime] = {}
        self._waiting: dict[str, datetime] = {}
        self._outcomes: set[tuple[str, datetime]] = set()

    def take(self, event: Event, now: datetime) -> None:
        """Takes the next event.

        Raises:
            AssertionError: it should never have been written.
        """
        match event:
            case OrchestratorStarted() | OrchestratorStopped():
                self._orchestrator_runs = isinstance(event, OrchestratorStarted)
            case JobDefined():
                self._define(event, now)
            case JobRemoved() if event.job not in self._jobs:
                assert event.source == "settings"
            case JobRemoved():
                self._end_schedule(event.job, now)
                assert event.job not in self._waiting
                del self._jobs[event.job]
                self._paused.discard(event.job)
            case JobPaused():
                assert event.job in self._jobs
                self._paused.add(event.job)
            case JobResumed():
                self._paused.remove(event.job)
            case TickBuffered():
                assert (event.job, event.tick) not in self._outcomes
                assert event.job not in self._waiting
                assert self._runs_of(event.job)
                self._waiting[event.job] = event.tick
            case RunMissed() | RunSkipped():
                self._decide(event.job, event.tick, now)
            case RunStarted():
                self._start(event, now)
            case RunRenewed():
                # Late as well, as long as no other process has taken it up.
                assert event.run_id in self._held
                self._held[event.run_id] = event.lease_expires_at
            case RunAttemptFailed():
                self._fail(event)
            case RunRetried():
                self._retry(event, now)
            case RunFinished():
                start, attempt = self.runs.pop(event.run_id)
                self._held.pop(event.run_id, None)
                # An attempt that found the job's resources claimed has failed before anybody held it.
                assert event.attempts in (attempt, attempt + 1)
                assert event.attempts <= start.attempts_allowed
                assert event.attempts == 0 or event.outcome != "missed"
                assert event.agent == start.agent
            case _:
                pass

    def check_ticks(self, job: str, until: datetime) -> None:
        """Every tick of a job up to a moment has its outcome, or waits."""
        since = self._ticking_since.get(job)
        tick = next_tick(schedule_of(self._jobs[job]), since) if since else None
        while tick and tick <= until:
            assert (job, tick) in self._outcomes or self._waiting.get(job) == tick
            tick = next_tick(schedule_of(self._jobs[job]), tick)

    def _define(self, event: JobDefined, now: datetime) -> None:
        before, wanted = self._jobs.get(event.job), event.definition
        if before and before.enabled and wanted.enabled and schedule_of(before) == schedule_of(wanted):
            self._jobs[event.job] = wanted
            return
        self._end_schedule(event.job, now)
        self._jobs[event.job] = wanted
        if wanted.enabled:
            self._ticking_since[event.job] = now
        else:
            assert event.job not in self._waiting

    def _end_schedule(self, job: str, now: datetime) -> None:
        if job in self._jobs:
            self.check_ticks(job, now)
        self._ticking_since.pop(job, None)

    def _decide(self, job: str, tick: datetime, now: datetime) -> None:
        assert tick <= now
        assert (job, tick) not in self._outcomes
        self._outcomes.add((job, tick))
        if self._waiting.get(job) == tick:
            del self._waiting[job]

    def _start(self, event: RunStarted, now: datetime) -> None:
        assert self._orchestrator_runs
        assert event.run_id not in self.runs
        assert self._jobs[event.job].overlap == "allow_all" or not self._runs_of(event.job)
        if not event.manual:
            assert event.job not in self._paused
            self._decide(event.job, event.tick, now)
        assert event.manual or event.runner
        self.runs[event.run_id] = (event, 1 if event.runner else 0)
        if event.runner:
            assert event.lease_expires_at is not None
            self._held[event.run_id] = event.lease_expires_at

    def _fail(self, event: RunAttemptFailed) -> None:
        start, attempt = self.runs[event.run_id]
        assert event.attempt in (attempt, attempt + 1)
        assert event.attempt == attempt + 1 or event.run_id in self._held
        assert event.attempt < start.attempts_allowed
        self.runs[event.run_id] = (start, event.attempt)
        self._held.pop(event.run_id, None)

    def _retry(self, event: RunRetried, now: datetime) -> None:
        assert self._orchestrator_runs
        assert event.job in self._jobs
        start, attempt = self.runs[event.run_id]
        assert event.attempt == attempt + 1 <= start.attempts_allowed
        assert event.lease_ran_out == (event.run_id in self._held)
        assert not event.lease_ran_out or self._held[event.run_id] <= now
        self.runs[event.run_id] = (start, event.attempt)
        self._held[event.run_id] = event.lease_expires_at

    def _runs_of(self, job: str) -> list[RunStarted]:
        return [start for start, _ in self.runs.values() if start.job == job]

"""The invariants of jobs and runs, checked from the events alone and independently of the folds."""

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


class JobInvariants:
    """Every tick has one outcome or is buffered; a run has one holder at a time, and one end."""

    def __init__(self) -> None:
        self.runs: dict[str, tuple[RunStarted, int]] = {}
        """The runs in progress, each with its current attempt."""
        self._leases: dict[str, datetime] = {}
        """When the lease of each run that a process holds expires."""
        self._orchestrator_runs = False
        self._jobs: dict[str, JobDefinition] = {}
        self._paused: set[str] = set()
        self._ticking_since: dict[str, datetime] = {}
        self._buffered: dict[str, datetime] = {}
        self._outcomes: set[tuple[str, datetime]] = set()

    def take(self, event: Event, now: datetime) -> None:
        """Check and apply the next event.

        Raises:
            AssertionError: the event violates an invariant.
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
                assert event.job not in self._buffered
                del self._jobs[event.job]
                self._paused.discard(event.job)
            case JobPaused():
                assert event.job in self._jobs
                self._paused.add(event.job)
            case JobResumed():
                self._paused.remove(event.job)
            case TickBuffered():
                assert (event.job, event.tick) not in self._outcomes
                assert event.job not in self._buffered
                assert self._runs_of(event.job)
                self._buffered[event.job] = event.tick
            case RunMissed() | RunSkipped():
                self._decide(event.job, event.tick, now)
            case RunStarted():
                self._start(event, now)
            case RunRenewed():
                # Even after the lease has expired, as long as no other process has taken the run over.
                assert event.run_id in self._leases
                self._leases[event.run_id] = event.lease_expires_at
            case RunAttemptFailed():
                self._fail(event)
            case RunRetried():
                self._retry(event, now)
            case RunFinished():
                start, attempt = self.runs.pop(event.run_id)
                self._leases.pop(event.run_id, None)
                # An attempt that finds the job's resources claimed fails before any process holds the run.
                assert event.attempts in (attempt, attempt + 1)
                assert event.attempts <= start.attempts_allowed
                assert event.attempts == 0 or event.outcome != "missed"
                assert event.agent == start.agent
            case _:
                pass

    def check_ticks(self, job: str, until: datetime) -> None:
        """Check that every tick of a job up to a moment has its outcome, or is buffered."""
        since = self._ticking_since.get(job)
        tick = next_tick(schedule_of(self._jobs[job]), since) if since else None
        while tick and tick <= until:
            assert (job, tick) in self._outcomes or self._buffered.get(job) == tick
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
            assert event.job not in self._buffered

    def _end_schedule(self, job: str, now: datetime) -> None:
        if job in self._jobs:
            self.check_ticks(job, now)
        self._ticking_since.pop(job, None)

    def _decide(self, job: str, tick: datetime, now: datetime) -> None:
        assert tick <= now
        assert (job, tick) not in self._outcomes
        self._outcomes.add((job, tick))
        if self._buffered.get(job) == tick:
            del self._buffered[job]

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
            self._leases[event.run_id] = event.lease_expires_at

    def _fail(self, event: RunAttemptFailed) -> None:
        start, attempt = self.runs[event.run_id]
        assert event.attempt in (attempt, attempt + 1)
        assert event.attempt == attempt + 1 or event.run_id in self._leases
        assert event.attempt < start.attempts_allowed
        self.runs[event.run_id] = (start, event.attempt)
        self._leases.pop(event.run_id, None)

    def _retry(self, event: RunRetried, now: datetime) -> None:
        assert self._orchestrator_runs
        assert event.job in self._jobs
        start, attempt = self.runs[event.run_id]
        assert event.attempt == attempt + 1 <= start.attempts_allowed
        assert event.lease_ran_out == (event.run_id in self._leases)
        assert not event.lease_ran_out or self._leases[event.run_id] <= now
        self.runs[event.run_id] = (start, event.attempt)
        self._leases[event.run_id] = event.lease_expires_at

    def _runs_of(self, job: str) -> list[RunStarted]:
        return [start for start, _ in self.runs.values() if start.job == job]

"""When each job is due next, kept beside the jobs so that a check costs only as much as what has changed.

Computing a job's next tick takes a few tenths of a millisecond, and there can be tens of thousands of jobs.
So it is computed once for each version of a job, for a few jobs per check, and kept in a heap.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING

from service.schedule import due_at, next_tick, schedule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from projections.jobs import JobRow

MAX_COMPUTED_AT_ONCE = 10
"""For how many jobs a check computes the next tick. Everything else waits meanwhile."""

RETRY_AFTER = timedelta(minutes=1)
"""When to retry a job whose next tick cannot be computed: its time zone may be known by then."""

_FEW = 100
"""How many outdated entries the heap may hold, besides one for each job, before it is rebuilt."""


class DueJobs:
    """The next ticks of a changing set of jobs.

    Args:
        jobs: by name. Whoever changes them must call `change`.
    """

    def __init__(self, jobs: Mapping[str, JobRow]) -> None:
        self._jobs = jobs
        self._uncomputed = dict.fromkeys(jobs)
        """Jobs whose next tick is yet to be computed, the oldest first."""
        self._due: dict[str, datetime] = {}
        """When each job is to start next; for a stalled one, when to retry it."""
        self._ticks: dict[str, datetime] = {}
        """The next tick of each job, before any jitter."""
        self._stalled: dict[str, None] = {}
        """Jobs whose next tick cannot be computed."""
        self._buffered: dict[str, None] = {}
        """Jobs with a buffered tick."""
        self._heap: list[tuple[datetime, str]] = []
        """A heap of the jobs that are not due yet. When a job changes, its old entry stays, and is skipped
        when it comes up."""
        self._ready: dict[str, None] = {}
        """Jobs that are due."""

    def change(self, names: Iterable[str]) -> None:
        """Note that jobs were added, changed or removed."""
        for name in names:
            for index in (self._due, self._ticks, self._stalled, self._buffered, self._ready):
                index.pop(name, None)
            self._uncomputed[name] = None

    def catch_up(self, now: datetime, report: Callable[[JobRow, str], None] | None = None) -> bool:
        """Compute the next tick of some jobs that have changed; return whether none is left.

        Args:
            now: the time.
            report: called with each job whose next tick cannot be computed here, and the reason.
        """
        for name in list(islice(self._uncomputed, MAX_COMPUTED_AT_ONCE)):
            del self._uncomputed[name]
            if (job := self._jobs.get(name)) and job.enabled and not job.removed:
                self._enter(job, now, report)
        while self._heap and self._heap[0][0] <= now:
            due, name = heappop(self._heap)
            if self._due.get(name) != due:
                continue
            if name in self._stalled:
                self.change((name,))
            else:
                self._ready[name] = None
        if len(self._heap) > 2 * len(self._due) + _FEW:
            self._heap = [(due, name) for name, due in self._due.items() if name not in self._ready]
            heapify(self._heap)
        return not self._uncomputed

    def due(self, now: datetime) -> list[tuple[datetime, JobRow]]:
        """Return the jobs that are due, each with the time since when it is."""
        return [(due, self._jobs[name]) for name in self._ready if (due := self._due[name]) <= now]

    def tick(self, name: str) -> datetime | None:
        """Return a job's first tick without an outcome, if there is one and it has been computed."""
        return self._ticks.get(name)

    def buffered(self) -> list[JobRow]:
        """Return the jobs with a buffered tick."""
        return [self._jobs[name] for name in self._buffered]

    def next(self, now: datetime) -> datetime | None:
        """Return when the first of the other jobs is due, or to be retried; None if none is."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        # The clock may have been set back since they became due.
        later = [due for name in self._ready if (due := self._due[name]) > now]
        return min((*later, *(due for due, _ in self._heap[:1])), default=None)

    def _enter(self, job: JobRow, now: datetime, report: Callable[[JobRow, str], None] | None) -> None:
        if job.buffered_tick is not None:
            self._buffered[job.name] = None
        tick: datetime | None = None
        try:
            tick = next_tick(schedule_of(job), job.ticked_until)
            due = due_at(job, tick) if tick else None
        except ValueError as error:
            if report:
                report(job, str(error))
            self._stalled[job.name] = None
            due = now + RETRY_AFTER
        if tick:
            self._ticks[job.name] = tick
        if due:
            self._due[job.name] = due
            heappush(self._heap, (due, job.name))

"""When each job is due next: kept beside the jobs, so that a look takes as long as what has changed.

To work out a job's next tick takes a few tenths of a millisecond, and there can be tens of thousands of
jobs. So it is done once for each version of a job, for a few jobs at a look, and kept in a heap.
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

AT_ONCE = 10
"""For how many jobs a look works out when they are due. Everything else waits meanwhile."""

AGAIN_AFTER = timedelta(minutes=1)
"""When a job whose next tick cannot be told is looked at again: its time zone may be known by then."""

_FEW = 100
"""So many outdated entries may lie in the heap, besides one for each job, before it is made anew."""


class Agenda:
    """The ticks of some jobs that change.

    Args:
        jobs: by name. Whoever changes some of them says so.
    """

    def __init__(self, jobs: Mapping[str, JobRow]) -> None:
        self._jobs = jobs
        self._untold = dict.fromkeys(jobs)
        """Those whose next tick is yet to be worked out, the oldest first."""
        self._due: dict[str, datetime] = {}
        """When each is to start next; of one that stands still, when to look at it again."""
        self._ticks: dict[str, datetime] = {}
        """The next tick of each, before any jitter."""
        self._still: dict[str, None] = {}
        """Those whose next tick cannot be worked out, and that stand still."""
        self._buffered: dict[str, None] = {}
        """Those a tick of which waits for a run."""
        self._soonest: list[tuple[datetime, str]] = []
        """A heap of those that are yet to come. The old entry of a job that has changed stays in it, and is
        passed over when its turn comes."""
        self._come: dict[str, None] = {}
        """Those whose time has come."""

    def change(self, names: Iterable[str]) -> None:
        """Takes note of jobs that are new, changed or gone."""
        for name in names:
            for those in (self._due, self._ticks, self._still, self._buffered, self._come):
                those.pop(name, None)
            self._untold[name] = None

    def catch_up(self, now: datetime, tell: Callable[[JobRow, str], None] | None = None) -> bool:
        """Tells the ticks of some jobs that have changed; says whether those of all are told.

        Args:
            now: the time.
            tell: told of each job whose ticks cannot be told here, and why.
        """
        for name in list(islice(self._untold, AT_ONCE)):
            del self._untold[name]
            if (job := self._jobs.get(name)) and job.enabled and not job.removed:
                self._enter(job, now, tell)
        while self._soonest and self._soonest[0][0] <= now:
            due, name = heappop(self._soonest)
            if self._due.get(name) != due:
                continue
            if name in self._still:
                self.change((name,))
            else:
                self._come[name] = None
        if len(self._soonest) > 2 * len(self._due) + _FEW:
            self._soonest = [(due, name) for name, due in self._due.items() if name not in self._come]
            heapify(self._soonest)
        return not self._untold

    def due(self, now: datetime) -> list[tuple[datetime, JobRow]]:
        """The jobs that are to start by now, and since when each."""
        return [(due, self._jobs[name]) for name in self._come if (due := self._due[name]) <= now]

    def tick(self, name: str) -> datetime | None:
        """A job's first tick that has no outcome, where there is one and it is told already."""
        return self._ticks.get(name)

    def buffered(self) -> list[JobRow]:
        """The jobs a tick of which waits for a run."""
        return [self._jobs[name] for name in self._buffered]

    def next(self, now: datetime) -> datetime | None:
        """When the first of the others is to start, or to be looked at; None where none is."""
        while self._soonest and self._due.get(self._soonest[0][1]) != self._soonest[0][0]:
            heappop(self._soonest)
        # Time may have been put back since they came.
        later = [due for name in self._come if (due := self._due[name]) > now]
        return min((*later, *(due for due, _ in self._soonest[:1])), default=None)

    def _enter(self, job: JobRow, now: datetime, tell: Callable[[JobRow, str], None] | None) -> None:
        if job.buffered_tick is not None:
            self._buffered[job.name] = None
        tick: datetime | None = None
        try:
            tick = next_tick(schedule_of(job), job.ticked_until)
            due = due_at(job, tick) if tick else None
        except ValueError as error:
            if tell:
                tell(job, str(error))
            self._still[job.name] = None
            due = now + AGAIN_AFTER
        if tick:
            self._ticks[job.name] = tick
        if due:
            self._due[job.name] = due
            heappush(self._soonest, (due, job.name))

"""What is kept beside the rows of a table, so that a question costs only as much as its answer.

See also `service.memory.deadlines` and `service.memory.due_jobs`, which are kept in the same way.
"""

from __future__ import annotations

import heapq
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from service.memory.deadlines import Deadlines
from service.memory.state import active_since, expiry, free_at, idle_since

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from projections.agents import AgentRow
    from projections.budgets import ReservationRow
    from projections.runs import RunRow


class Index(Protocol):
    """Whoever changes the rows of the table must call `change`."""

    def change(self, rows: Mapping[Any, Any], /) -> None:
        """Note that these rows, by key, were added or changed; those that are finished left the table."""


class RestingAgents:
    """The agents that are neither at work nor offline, and may therefore go quiet.

    Args:
        agents: by name.
        order: a number for each resting agent, in the order in which they began to rest.
    """

    def __init__(self, agents: Mapping[str, AgentRow], order: dict[str, int] | None = None) -> None:
        self._agents = agents
        self._order = order or {}
        self._active = Deadlines[Any](agents, active_since, self._began)
        self._idle = Deadlines[Any](agents, idle_since, self._began)

    def copy(self, agents: Mapping[str, AgentRow]) -> RestingAgents:
        """Return a copy for a copy of the rows."""
        return RestingAgents(agents, self._order.copy())

    def change(self, agents: Mapping[str, AgentRow], /) -> None:
        """Note that these agents were added or changed."""
        order = self._order
        for name, row in agents.items():
            if row.operations > 0 or row.status == "offline":
                order.pop(name, None)
                continue
            if name not in order:
                order[name] = next(reversed(order.values()), 0) + 1
            (self._active if row.status == "active" else self._idle).change((name,))

    def silent_since(self, active: datetime, idle: datetime) -> Iterable[AgentRow]:
        """Yield those last heard of by then, in the order in which they began to rest."""
        both = self._active.expired(active), self._idle.expired(idle)
        return heapq.merge(*both, key=self._began)

    def longest_silent(self) -> tuple[datetime, datetime]:
        """Return when the longest silent one was last heard of, among the active and the idle."""
        return self._active.first(), self._idle.first()

    def _began(self, agent: AgentRow) -> int:
        return self._order[agent.name]


class OpenReservations:
    """The reservations that have not ended: those of each agent, and when they expire.

    Args:
        reservations: by id.
    """

    def __init__(self, reservations: Mapping[str, ReservationRow]) -> None:
        self._reservations = reservations
        self._of_agent: dict[str, set[str]] | None = None
        """None until the first query: most copies of a squad are never queried."""
        self.deadlines = Deadlines[Any](reservations, expiry, attrgetter("position"))

    def change(self, reservations: Mapping[str, ReservationRow], /) -> None:
        """Note that these reservations were added or changed."""
        self.deadlines.change(reservations)
        if self._of_agent is not None:
            _sort_in(self._of_agent, reservations)

    def of_agent(self, agent: str) -> Iterable[ReservationRow]:
        """Return the reservations of an agent, in no order."""
        if self._of_agent is None:
            self._of_agent = {}
            _sort_in(self._of_agent, self._reservations)
        return map(self._reservations.__getitem__, self._of_agent.get(agent, ()))


class RunsInProgress:
    """The runs in progress: those of each job, and when they are free to be taken up.

    Args:
        runs: by id.
    """

    def __init__(self, runs: Mapping[str, RunRow]) -> None:
        self._runs = runs
        self._of_job: dict[str, set[str]] = {}
        self._leases = Deadlines[Any](runs, free_at, attrgetter("fencing_token"))
        self.change(runs)

    def change(self, runs: Mapping[str, RunRow], /) -> None:
        """Note that these runs were added or changed."""
        for id_, row in runs.items():
            if row.status == "running":
                self._of_job.setdefault(row.job, set()).add(id_)
            elif others := self._of_job.get(row.job):
                others.discard(id_)
                if not others:
                    del self._of_job[row.job]
        self._leases.change(runs)

    def of_job(self, job: str) -> Iterable[RunRow]:
        """Return the runs of a job, in no order."""
        return map(self._runs.__getitem__, self._of_job.get(job, ()))

    def free(self, now: datetime) -> Iterable[RunRow]:
        """Yield the runs that are free to be taken up by any process, in the order in which they began."""
        return self._leases.expired(now)

    def next_free(self, now: datetime) -> datetime:
        """Return when the next of the other runs becomes free, if nothing happens to it before."""
        return self._leases.next(now)


def _sort_in(of_agent: dict[str, set[str]], reservations: Mapping[str, ReservationRow]) -> None:
    """Add the reservations that are open to those of their agents, and remove the others."""
    for id_, row in reservations.items():
        if row.state == "active":
            of_agent.setdefault(row.agent, set()).add(id_)
        elif others := of_agent.get(row.agent):
            others.discard(id_)
            if not others:
                del of_agent[row.agent]

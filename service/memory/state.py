"""What a decision sees: the active rows of the projections, up to the log's very last event.

`service.memory.squad` has the committed state, `service.memory.draft` a layer above it in which one batch
is decided. Both use the projections' own folds, so that what an event does is written only once.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from eventstore.recorded import EMPTY_LOG, Head
from eventstore.subjects import NO_TRACE
from projections.budgets import (
    BUDGET_DAYS,
    BUDGETS,
    POLICY,
    RESERVATIONS,
    THE_POLICY,
    BudgetDayRow,
    BudgetRow,
    PolicyRow,
)
from projections.operations import OPERATIONS
from projections.orchestrator import ORCHESTRATOR, THE_ORCHESTRATOR, OrchestratorRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date, datetime

    from eventstore.subjects import Trace
    from projections.agents import AgentRow
    from projections.budgets import ReservationRow
    from projections.operations import OperationRow
    from projections.projection import K, R, Rows, Table
    from projections.runs import RunRow

Resource = tuple[str, str]
"""A kind and a value, such as ("emailId", "email-123")."""

EXPIRING = (OPERATIONS.name, RESERVATIONS.name)
"""Tables whose rows expire, and that can have many: see `State.no_expiry_before`."""


def key_of_resource(resource: Resource) -> str:
    """Return the key of a resource in `Squad.holders`. No kind contains the separator."""
    return "\x1f".join(resource)


def ids_in(joined: str | None) -> tuple[str, ...]:
    """Return the ids in a comma-separated list."""
    return tuple(joined.split(",")) if joined else ()


def expiry(row: OperationRow | ReservationRow) -> datetime | None:
    """Return when a row expires; None if it has ended."""
    return row.expires_at if row.state == "active" else None


def active_since(row: AgentRow) -> datetime | None:
    """Return when an agent was last heard of, if it is active and not at work; otherwise None."""
    return row.last_active if row.status == "active" and row.operations <= 0 else None


def idle_since(row: AgentRow) -> datetime | None:
    """Return when an agent was last heard of, if it is idle and not at work; otherwise None."""
    return row.last_active if row.status == "idle" and row.operations <= 0 else None


def free_at(row: RunRow) -> datetime | None:
    """Return when any process may take up a run, if nothing happens to it before; None if it has ended."""
    return row.retry_at or row.lease_expires_at if row.status == "running" else None


def with_id(joined: str | None, id_: str) -> str:
    """Append an id to a comma-separated list."""
    return f"{joined},{id_}" if joined else id_


class State:
    """The state as decisions and readers see it, committed or drafted."""

    head: Head = EMPTY_LOG
    """The log's head that the state was folded to."""
    checked_at: datetime | None = None
    """When the effects of time, such as expiry, were last checked for."""
    _open_day: date | None = None
    no_expiry_before: Mapping[str, datetime] = MappingProxyType({})
    """By name, for the tables in `EXPIRING`: none of their rows expires before this moment, so nobody need
    check. It is a lower bound; the first row may expire later."""
    traces: Mapping[str, Trace] = MappingProxyType({})
    """What was looked up for `trace`, by subject."""

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """Return one table's active rows, by key."""
        raise NotImplementedError

    def all(self, table: Table[K, R], /) -> Iterable[R]:
        """Return one table's active rows, in no order."""
        raise NotImplementedError

    def claims(self, resource: Resource, /) -> tuple[str, ...]:
        """Return the ids of the active operations that name a resource, the oldest first."""
        raise NotImplementedError

    def expired(self, name: str, now: datetime, /) -> Iterable[Any]:
        """Return the active rows of a table in `EXPIRING` that have expired; operations as they began."""
        raise NotImplementedError

    def first_to_expire(self, name: str, now: datetime, /) -> datetime:
        """Return when the next row of a table in `EXPIRING` expires, of those that have not yet.

        It is a lower bound.
        """
        raise NotImplementedError

    def reservations_of(self, agent: str, /) -> Iterable[ReservationRow]:
        """Return the open reservations of an agent, in no order."""
        raise NotImplementedError

    def silent_since(self, active: datetime, idle: datetime, /) -> Iterable[AgentRow]:
        """Return the resting agents last heard of by `active` if they are active, by `idle` if idle."""
        raise NotImplementedError

    def runs_of(self, job: str, /) -> Iterable[RunRow]:
        """Return the runs of a job that are in progress, in no order."""
        raise NotImplementedError

    def email_with(self, gmail_message_id: str, /) -> str | None:
        """Return the id of the e-mail with this Gmail message id, if it is known."""
        raise NotImplementedError

    def trace(self, subject: str, /) -> Trace:
        """Return what the log holds of a sender or a message to be forgotten, if it was looked up."""
        return self.traces.get(subject, NO_TRACE)

    @property
    def policy(self) -> PolicyRow:
        """The rules in force. They are set before anything else is decided."""
        policy = self.rows(POLICY).get(THE_POLICY)
        if policy is None:
            raise LookupError("no policy has been set")
        return policy

    @property
    def has_policy(self) -> bool:
        """Whether rules were ever set."""
        return self.rows(POLICY).get(THE_POLICY) is not None

    @property
    def day(self) -> BudgetDayRow | None:
        """The open budget day; None before the first."""
        # There is never more than one, so it is enough to check whether the last one is still open.
        row = self.rows(BUDGET_DAYS).get(self._open_day) if self._open_day else None
        if row is None or row.closed_at is not None:
            row = next((day for day in self.all(BUDGET_DAYS) if day.closed_at is None), None)
            self._open_day = row.day if row else None
        return row

    @property
    def orchestrator(self) -> OrchestratorRow | None:
        """Whether jobs may fire; None before the first start."""
        return self.rows(ORCHESTRATOR).get(THE_ORCHESTRATOR)

    def agent_budget(self, day: BudgetDayRow, agent: str) -> BudgetRow:
        """Return one agent's share of a day."""
        return self.rows(BUDGETS).get((day.day, agent)) or BudgetRow(day.day, agent, 0, 0, 0)

    def agent_budgets(self, day: BudgetDayRow) -> list[BudgetRow]:
        """Return every agent's share of a day, by name."""
        return sorted((row for row in self.all(BUDGETS) if row.day == day.day), key=lambda row: row.agent)

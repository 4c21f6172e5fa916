"""What a decision sees: the projections' rows, as far as they are active, up to the log's very last event.

`service.memory.squad` has the committed state, `service.memory.draft` a layer above it in which one batch
is decided. The folds are the projections' own; nothing about events is said twice.
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
"""Tables whose rows run out of time, and of which there can be many: see `State.spared_until`."""


def key_of_resource(resource: Resource) -> str:
    """What the holders of a resource are kept by. No kind holds what stands between."""
    return "\x1f".join(resource)


def ids_in(joined: str | None) -> tuple[str, ...]:
    """Ids that were joined by commas."""
    return tuple(joined.split(",")) if joined else ()


def expiry(row: OperationRow | ReservationRow) -> datetime | None:
    """When a row runs out of time; None where it has ended."""
    return row.expires_at if row.state == "active" else None


def active_since(row: AgentRow) -> datetime | None:
    """When an agent was last heard of that is active and not at work; None of any other."""
    return row.last_active if row.status == "active" and row.operations <= 0 else None


def idle_since(row: AgentRow) -> datetime | None:
    """When an agent was last heard of that is idle and not at work; None of any other."""
    return row.last_active if row.status == "idle" and row.operations <= 0 else None


def free_at(row: RunRow) -> datetime | None:
    """When somebody may take a run up, if nothing happens to it before; None where it is over."""
    return row.retry_at or row.lease_expires_at if row.status == "running" else None


def with_id(joined: str | None, id_: str) -> str:
    """The same ids, and one more."""
    return f"{joined},{id_}" if joined else id_


class State:
    """The state as deciders and readers see it, committed or drafted."""

    head: Head = EMPTY_LOG
    """Where the log ended when the state was folded."""
    looked_at: datetime | None = None
    """When it was last looked for what the passing of time makes happen."""
    _open_day: date | None = None
    spared_until: Mapping[str, datetime] = MappingProxyType({})
    """By name, for the tables in `EXPIRING`: before this moment none of its rows expires, and nobody need
    look. It is a lower bound; the first row may expire later."""
    traces: Mapping[str, Trace] = MappingProxyType({})
    """What was looked up for `trace`, by subject."""

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """One table's active rows, by key."""
        raise NotImplementedError

    def all(self, table: Table[K, R], /) -> Iterable[R]:
        """One table's active rows, in no order."""
        raise NotImplementedError

    def claims(self, resource: Resource, /) -> tuple[str, ...]:
        """Ids of the active operations that name a resource, the oldest first."""
        raise NotImplementedError

    def expired(self, name: str, now: datetime, /) -> Iterable[Any]:
        """The active rows of a table in `EXPIRING` whose time is over; operations as they began."""
        raise NotImplementedError

    def first_to_expire(self, name: str, now: datetime, /) -> datetime:
        """When the next row of a table in `EXPIRING` runs out of time, of those that have not by now.

        It can be sooner than the first that really does.
        """
        raise NotImplementedError

    def silent_since(self, active: datetime, idle: datetime, /) -> Iterable[AgentRow]:
        """The agents that rest and were last heard of by then, the active ones and those that are idle."""
        raise NotImplementedError

    def runs_of(self, job: str, /) -> Iterable[RunRow]:
        """The runs of a job that are under way, in no order."""
        raise NotImplementedError

    def email_with(self, gmail_message_id: str, /) -> str | None:
        """The id of the e-mail with this Gmail message id, where it is known."""
        raise NotImplementedError

    def trace(self, subject: str, /) -> Trace:
        """What the log holds of a sender or a message that is to be forgotten, where it was looked up."""
        return self.traces.get(subject, NO_TRACE)

    @property
    def policy(self) -> PolicyRow:
        """The rules that hold now. They are set before anything else is decided."""
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
        # There is never more than one, so the one that was open need only be asked whether it still is.
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
        """One agent's part of a day."""
        return self.rows(BUDGETS).get((day.day, agent)) or BudgetRow(day.day, agent, 0, 0, 0)

    def agent_budgets(self, day: BudgetDayRow) -> list[BudgetRow]:
        """Every agent's part of a day, by name."""
        return sorted((row for row in self.all(BUDGETS) if row.day == day.day), key=lambda row: row.agent)

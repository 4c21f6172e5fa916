"""The squad as it would be: its active budget and claims.

It is a decision state like the writer's, kept by the same folds and judged by the same functions, so its
verdict on a request is the one that the squad would have given.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from eventstore.events import OperationFinished, OperationRenewed, OperationStarted
from projections.budgets import BUDGET_DAYS, BUDGETS, POLICY, RESERVATIONS, budgets
from projections.operations import OPERATIONS, operations
from service.memory.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from eventstore.events import (
        BudgetDayReset,
        BudgetThresholdCrossed,
        PolicySet,
        TokensReleased,
        TokensReserved,
        TokensSettled,
        TokensUsed,
    )
    from eventstore.recorded import Recorded
    from projections.operations import OperationRow
    from projections.projection import K, R, Rows, Table
    from service.memory.state import Resource

    OfBudget = (
        PolicySet
        | BudgetDayReset
        | BudgetThresholdCrossed
        | TokensReserved
        | TokensSettled
        | TokensReleased
        | TokensUsed
    )

_KEPT: tuple[Table[Any, Any], ...] = (POLICY, BUDGET_DAYS, BUDGETS, RESERVATIONS, OPERATIONS)


class _Rows(dict[Any, Any]):
    def put(self, key: Any, row: Any, /) -> None:
        self[key] = row


class SimulatedState(State):
    """Policy, budget days, reservations and operations under some rules; what has ended is removed."""

    def __init__(self) -> None:
        self._tables = {table.name: _Rows() for table in _KEPT}
        self._holders: dict[Resource, tuple[str, ...]] = {}
        self._expiring: list[tuple[datetime, str]] = []

    def load(self, squad: State) -> None:
        """Start from the state of another squad."""
        for table in _KEPT:
            self._tables[table.name].update((table.key_of(row), row) for row in squad.all(table))
        for operation in sorted(self.all(OPERATIONS), key=lambda row: row.fencing_token):
            self._hold(operation.id, operation.resources)
            heapq.heappush(self._expiring, (operation.expires_at, operation.id))

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """One table's active rows, by key."""
        return self._tables[table.name]

    def all(self, table: Table[K, R], /) -> Iterable[R]:
        """One table's active rows, in no order."""
        return self._tables[table.name].values()

    def claims(self, resource: Resource, /) -> tuple[str, ...]:
        """Ids of the active operations that name a resource, the oldest first."""
        return self._holders.get(resource, ())

    def operation(self, operation_id: str) -> OperationRow | None:
        """An operation, if it is active."""
        return self.rows(OPERATIONS).get(operation_id)

    def spend(self, event: OfBudget, recorded: Recorded) -> None:
        """Apply an event about the policy or about tokens."""
        budgets.apply(self, event, recorded)

    def end_reservation(self, event: TokensSettled | TokensReleased, recorded: Recorded) -> None:
        """End a reservation and remove it."""
        budgets.apply(self, event, recorded)
        del self._tables[RESERVATIONS.name][event.reservation_id]
        self.forget_past_days()

    def claim(self, event: OperationStarted | OperationRenewed, recorded: Recorded) -> None:
        """Start or renew an operation."""
        operations.apply(self, event, recorded)
        if isinstance(event, OperationStarted):
            self._hold(event.operation_id, event.resources)
        heapq.heappush(self._expiring, (event.expires_at, event.operation_id))

    def finish(self, event: OperationFinished) -> None:
        """End an operation and remove it."""
        self._remove(event.operation_id)

    def expire(self, now: datetime) -> list[OperationRow]:
        """Remove and return the operations that were not renewed in time."""
        gone: list[OperationRow] = []
        while self._expiring and self._expiring[0][0] <= now:
            _, operation_id = heapq.heappop(self._expiring)
            row = self.operation(operation_id)
            # A renewed operation has a later entry in the heap.
            if row and row.expires_at <= now:
                gone.append(row)
                self._remove(operation_id)
        return gone

    def forget_past_days(self) -> None:
        """Remove closed days without open reservations, and their agents' parts."""
        days, parts = self._tables[BUDGET_DAYS.name], self._tables[BUDGETS.name]
        over = {day for day, row in days.items() if row.closed_at is not None and row.reserved == 0}
        if over:
            for day in over:
                del days[day]
            for key in [key for key in parts if key[0] in over]:
                del parts[key]

    def _hold(self, operation_id: str, resources: dict[str, str]) -> None:
        for resource in resources.items():
            self._holders[resource] = (*self.claims(resource), operation_id)

    def _remove(self, operation_id: str) -> None:
        row = self._tables[OPERATIONS.name].pop(operation_id, None)
        for resource in row.resources.items() if row else ():
            left = tuple(holder for holder in self.claims(resource) if holder != operation_id)
            if left:
                self._holders[resource] = left
            else:
                self._holders.pop(resource, None)

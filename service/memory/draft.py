"""A batch being decided: a thin layer above the state, to be merged down or thrown away.

Commands see what those before them in the batch did; one that fails is rolled back alone.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from eventstore.events import (
    EmailReceived,
    EmailUpdated,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    TaskUpdated,
    TokensReserved,
)
from eventstore.recorded import Head
from projections import HANDLERS, handlers_of
from projections.agents import AGENTS
from projections.budgets import RESERVATIONS
from projections.operations import OPERATIONS
from projections.projection import MissingRow, Table
from projections.runs import RUNS
from service.memory.residence import PARTIAL, RESIDENT, RESIDENT_PROJECTIONS
from service.memory.state import (
    Resource,
    State,
    active_since,
    expiry,
    idle_since,
    ids_in,
    key_of_resource,
    with_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from eventstore.subjects import Trace
    from projections.agents import AgentRow
    from projections.budgets import ReservationRow
    from projections.projection import K, R, Rows
    from projections.runs import RunRow
    from service.memory.squad import Squad

_ABSENT: Any = object()

_RESIDENT_HANDLERS = handlers_of(RESIDENT_PROJECTIONS)
"""The handlers that change what stays in memory."""


class Layer:
    """A map layered above another map. Writes are noted in a journal, so that they can be rolled back."""

    __slots__ = ("below", "changes", "journal")

    def __init__(
        self, below: Mapping[Any, Any] | Layer, journal: list[tuple[dict[Any, Any], Any, Any]]
    ) -> None:
        self.below = below
        self.changes: dict[Any, Any] = {}
        self.journal = journal

    def get(self, key: Any, /) -> Any:
        """Return the value as this layer has it."""
        value = self.changes.get(key, _ABSENT)
        return self.below.get(key) if value is _ABSENT else value

    def put(self, key: Any, value: Any, /) -> None:
        """Write a value."""
        changes = self.changes
        self.journal.append((changes, key, changes.get(key, _ABSENT)))
        changes[key] = value

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield all items, in no order."""
        for key, value in self.below.items():
            if key not in self.changes:
                yield key, value
        yield from self.changes.items()

    def values(self) -> Iterator[Any]:
        """Yield all values, in no order."""
        return map(itemgetter(1), self.items())


class _WholeLayer(Layer):
    """A layer that is merged down or thrown away as a whole: it has no journal and is never rolled back."""

    __slots__ = ("put",)
    put: Any

    def __init__(
        self, below: Mapping[Any, Any] | Layer, journal: list[tuple[dict[Any, Any], Any, Any]]
    ) -> None:
        super().__init__(below, journal)
        self.put = self.changes.__setitem__


class _Layers(dict["Table[Any, Any]", Layer]):
    """Layers by table; each is made above the table's rows on first use."""

    def __init__(self, base: Squad | Draft, make: Callable[[Any], Layer]) -> None:
        super().__init__()
        self.base = base
        self._make = make

    def __missing__(self, table: Table[Any, Any]) -> Layer:
        layer = self[table] = self._make(_below(self.base, table))
        return layer

    def rebase(self, squad: Squad) -> None:
        """Move the layers onto another squad's tables."""
        self.base = squad
        for table, layer in self.items():
            layer.below = _below(squad, table)


def _below(base: Squad | Draft, table: Table[Any, Any]) -> Mapping[Any, Any] | Layer:
    return base.layers[table] if isinstance(base, Draft) else base.tables.get(table.name, {})


class Draft(State):
    """A batch being decided: the squad as it will be if the batch's events get into the log.

    A batch may be decided above another one that is still in flight. A draft that is `whole` is never
    rolled back, and folds faster.
    """

    def __init__(self, base: Squad | Draft, *, whole: bool = False) -> None:
        self.head, self.checked_at = base.head, base.checked_at
        self.no_expiry_before: dict[str, datetime] = dict(base.no_expiry_before)
        self._open_day = base._open_day
        self.journal: list[tuple[dict[Any, Any], Any, Any]] = []
        # Rows that never stay in memory matter only to later commands of the same batch.
        self._handlers = _RESIDENT_HANDLERS if whole else HANDLERS
        make = partial(_WholeLayer if whole else Layer, journal=self.journal)
        self.layers = _Layers(base, make)
        self.versions: Layer = make(base.versions)
        self.holders: Layer = make(base.holders)
        self.gmail_ids: Layer = make(base.gmail_ids)
        self.absent: Layer = make({})
        self.traces: dict[str, Trace] = {}
        self._safe_head = base.head

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """Return one table's rows."""
        return self.layers[table]

    def all(self, table: Table[K, R], /) -> Iterable[R]:
        """Return one table's rows, in no order, including those finished within the draft."""
        return self.layers[table].values()

    def claims(self, resource: Resource, /) -> tuple[str, ...]:
        """Return the ids of the active operations that name a resource, the oldest first."""
        return ids_in(self.holders.get(key_of_resource(resource)))

    def expired(self, name: str, now: datetime, /) -> Iterator[Any]:
        """Yield the active rows of a table that have expired; those changed within the draft come last."""
        changes = self._changes_of(name)
        yield from (row for row in self.layers.base.expired(name, now) if row.id not in changes)
        yield from (row for row in changes.values() if (over_at := expiry(row)) and over_at <= now)

    def first_to_expire(self, name: str, now: datetime, /) -> datetime:
        """Return a lower bound for when the next row of a table expires, of those that have not yet."""
        later = (at for row in self._changes_of(name).values() if (at := expiry(row)) and at > now)
        return min((self.layers.base.first_to_expire(name, now), *later))

    def reservations_of(self, agent: str, /) -> Iterator[ReservationRow]:
        """Yield the open reservations of an agent, in no order."""
        changes = self.layers[RESERVATIONS].changes
        yield from (row for row in self.layers.base.reservations_of(agent) if row.id not in changes)
        yield from (row for row in changes.values() if row.agent == agent and row.state == "active")

    def silent_since(self, active: datetime, idle: datetime, /) -> Iterator[AgentRow]:
        """Yield the resting agents last heard of by then; those changed within the draft come last."""
        changes = self.layers[AGENTS].changes
        yield from (row for row in self.layers.base.silent_since(active, idle) if row.name not in changes)
        for row in changes.values():
            heard_of_active, heard_of_idle = active_since(row), idle_since(row)
            if (heard_of_active and heard_of_active <= active) or (heard_of_idle and heard_of_idle <= idle):
                yield row

    def runs_of(self, job: str, /) -> Iterator[RunRow]:
        """Yield the runs of a job that are in progress, in no order."""
        changes = self.layers[RUNS].changes
        yield from (row for row in self.layers.base.runs_of(job) if row.id not in changes)
        yield from (row for row in changes.values() if row.job == job and row.status == "running")

    def email_with(self, gmail_message_id: str, /) -> str | None:
        """Return the id of the e-mail with this Gmail message id, if it is in memory or was looked up."""
        return self.gmail_ids.get(gmail_message_id)  # type: ignore[no-any-return]

    def next_version(self, stream: str) -> int:
        """Return the version that the next event of a stream gets."""
        return (self.versions.get(stream) or 0) + 1

    def fold(self, event: AnyEvent, recorded: Recorded) -> None:
        """Apply an event that follows the head."""
        self.apply(event, recorded)
        self.head = Head(recorded.position, recorded.hash, recorded.recorded_at)

    def apply(self, event: AnyEvent, recorded: Recorded) -> None:
        """Apply an event; the caller moves the head."""
        for handler in self._handlers[type(event)]:
            try:
                handler(self, event, recorded)
            except MissingRow as missing:
                # Tables that are not in memory at all do not matter here.
                if missing.table.name in RESIDENT and missing.table.name not in PARTIAL:
                    raise
                # The event holds the whole entity as it is now, so it says what the row would.
                if isinstance(event, TaskUpdated | EmailUpdated):
                    self.absent.put(recorded.stream, RESIDENT[missing.table.name].is_active(event))
        if keep_index := _INDEXED.get(type(event)):
            keep_index(self, event)
        self.versions.put(recorded.stream, recorded.version)

    def _changes_of(self, name: str) -> dict[Any, Any]:
        return self.layers[RESIDENT[name].table].changes

    def rebase(self, squad: Squad) -> None:
        """Move the draft onto a squad that has merged the base of this draft."""
        self.layers.rebase(squad)
        self.versions.below, self.holders.below = squad.versions, squad.holders
        self.gmail_ids.below = squad.gmail_ids

    def set_savepoint(self) -> None:
        """Keep what was folded so far, even if the next command is rolled back."""
        self.journal.clear()
        self._safe_head = self.head

    def roll_back(self) -> None:
        """Roll back to the last savepoint. Must not be called on a `whole` draft."""
        while self.journal:
            changes, key, before = self.journal.pop()
            if before is _ABSENT:
                del changes[key]
            else:
                changes[key] = before
        self.head = self._safe_head


def _note_expiry(
    draft: Draft, event: OperationStarted | OperationRenewed | TokensReserved, *, name: str
) -> None:
    if event.expires_at < draft.no_expiry_before[name]:
        draft.no_expiry_before[name] = event.expires_at


def _hold(draft: Draft, event: OperationStarted) -> None:
    _note_expiry(draft, event, name=OPERATIONS.name)
    holders = draft.holders
    for resource in map(key_of_resource, event.resources.items()):
        holders.put(resource, with_id(holders.get(resource), event.operation_id))


def _release(draft: Draft, event: OperationFinished | OperationExpired) -> None:
    operation = draft.rows(OPERATIONS).get(event.operation_id)
    for resource in operation.resources.items() if operation else ():
        left = [holder for holder in draft.claims(resource) if holder != event.operation_id]
        draft.holders.put(key_of_resource(resource), ",".join(left))


def _note_gmail_id(draft: Draft, event: EmailReceived) -> None:
    draft.gmail_ids.put(event.gmail_message_id, event.email_id)


_INDEXED: dict[type[AnyEvent], Callable[[Draft, Any], None]] = {
    OperationStarted: _hold,
    OperationRenewed: partial(_note_expiry, name=OPERATIONS.name),
    TokensReserved: partial(_note_expiry, name=RESERVATIONS.name),
    OperationFinished: _release,
    OperationExpired: _release,
    EmailReceived: _note_gmail_id,
}
"""What an event changes besides the rows."""

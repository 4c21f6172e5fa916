"""A batch under decision: a thin layer above the state, to be merged down or thrown away.

Commands see what those before them in the batch did; one that fails is taken back alone.
"""

from __future__ import annotations

from functools import partial
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
from projections import HANDLERS, PROJECTIONS, handlers_of
from projections.agents import AGENTS
from projections.budgets import RESERVATIONS
from projections.operations import OPERATIONS
from projections.projection import MissingRow, Table
from projections.runs import RUNS
from service.memory.residence import PARTIAL, RESIDENT
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
    from projections.projection import K, R, Rows
    from projections.runs import RunRow
    from service.memory.squad import Squad

_ABSENT: Any = object()

_OF_RESIDENTS = handlers_of(
    projection for projection in PROJECTIONS if any(table.name in RESIDENT for table in projection.tables)
)
"""Those handlers that change what stays in memory."""


class Layer:
    """A map above a map. What it writes it also notes in a journal, so that it can be taken back."""

    __slots__ = ("below", "changes", "journal")

    def __init__(
        self, below: Mapping[Any, Any] | Layer, journal: list[tuple[dict[Any, Any], Any, Any]]
    ) -> None:
        self.below = below
        self.changes: dict[Any, Any] = {}
        self.journal = journal

    def get(self, key: Any, /) -> Any:
        """The value as this layer has it."""
        value = self.changes.get(key, _ABSENT)
        return self.below.get(key) if value is _ABSENT else value

    def put(self, key: Any, value: Any, /) -> None:
        """Writes a value."""
        changes = self.changes
        self.journal.append((changes, key, changes.get(key, _ABSENT)))
        changes[key] = value

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All there are, in no order."""
        for key, value in self.below.items():
            if key not in self.changes:
                yield key, value
        yield from self.changes.items()

    def values(self) -> Iterator[Any]:
        """All there are, in no order."""
        return (value for _, value in self.items())


class _WholeLayer(Layer):
    """One that is merged down or thrown away as it is: nothing of it is taken back, and no journal kept."""

    __slots__ = ("put",)
    put: Any

    def __init__(
        self, below: Mapping[Any, Any] | Layer, journal: list[tuple[dict[Any, Any], Any, Any]]
    ) -> None:
        super().__init__(below, journal)
        self.put = self.changes.__setitem__


class _Layers(dict["Table[Any, Any]", Layer]):
    """By table; each is laid above the table's rows when it is first asked for."""

    def __init__(self, base: Squad | Draft, make: Callable[[Any], Layer]) -> None:
        super().__init__()
        self.base = base
        self._make = make

    def __missing__(self, table: Table[Any, Any]) -> Layer:
        layer = self[table] = self._make(_below(self.base, table))
        return layer

    def rebase(self, squad: Squad) -> None:
        """Lays them above another squad's."""
        self.base = squad
        for table, layer in self.items():
            layer.below = _below(squad, table)


def _below(base: Squad | Draft, table: Table[Any, Any]) -> Mapping[Any, Any] | Layer:
    return base.layers[table] if isinstance(base, Draft) else base.tables.get(table.name, {})


class Draft(State):
    """A batch under decision: the squad as it will be if the batch's events get into the log.

    One batch may be decided above another one that is still on its way there. A draft that is `whole` is
    never rolled back, and folds sooner.
    """

    def __init__(self, base: Squad | Draft, *, whole: bool = False) -> None:
        self.head, self.looked_at = base.head, base.looked_at
        self.spared_until: dict[str, datetime] = dict(base.spared_until)
        self._open_day = base._open_day
        self.journal: list[tuple[dict[Any, Any], Any, Any]] = []
        # What never stays in memory matters only to the commands of a batch, each to those after it.
        self._handlers = _OF_RESIDENTS if whole else HANDLERS
        make = partial(_WholeLayer if whole else Layer, journal=self.journal)
        self.layers = _Layers(base, make)
        self.versions: Layer = make(base.versions)
        self.holders: Layer = make(base.holders)
        self.gmail_ids: Layer = make(base.gmail_ids)
        self.absent: Layer = make({})
        self.traces: dict[str, Trace] = {}
        self._safe_head = base.head

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """One table's rows."""
        return self.layers[table]

    def all(self, table: Table[K, R], /) -> Iterable[R]:
        """One table's rows, in no order; those finished within the draft among them."""
        return self.layers[table].values()

    def claims(self, resource: Resource, /) -> tuple[str, ...]:
        """Ids of the active operations that name a resource, the oldest first."""
        return ids_in(self.holders.get(key_of_resource(resource)))

    def expired(self, name: str, now: datetime, /) -> Iterator[Any]:
        """The active rows of a table whose time is over; those that changed within the draft at last."""
        changes = self._changes_of(name)
        yield from (row for row in self.layers.base.expired(name, now) if row.id not in changes)
        yield from (row for row in changes.values() if (over_at := expiry(row)) and over_at <= now)

    def first_to_expire(self, name: str, now: datetime, /) -> datetime:
        """When the next row of a table runs out of time, of those that have not by now; maybe sooner."""
        later = (at for row in self._changes_of(name).values() if (at := expiry(row)) and at > now)
        return min((self.layers.base.first_to_expire(name, now), *later))

    def silent_since(self, active: datetime, idle: datetime, /) -> Iterator[AgentRow]:
        """The agents that rest and were last heard of by then; those changed within the draft at last."""
        changes = self.layers[AGENTS].changes
        yield from (row for row in self.layers.base.silent_since(active, idle) if row.name not in changes)
        for row in changes.values():
            heard_of_active, heard_of_idle = active_since(row), idle_since(row)
            if (heard_of_active and heard_of_active <= active) or (heard_of_idle and heard_of_idle <= idle):
                yield row

    def runs_of(self, job: str, /) -> Iterator[RunRow]:
        """The runs of a job that are under way, in no order."""
        changes = self.layers[RUNS].changes
        yield from (row for row in self.layers.base.runs_of(job) if row.id not in changes)
        yield from (row for row in changes.values() if row.job == job and row.status == "running")

    def email_with(self, gmail_message_id: str, /) -> str | None:
        """The id of the e-mail with this Gmail message id, where it is in memory or was looked up."""
        return self.gmail_ids.get(gmail_message_id)  # type: ignore[no-any-return]

    def next_version(self, stream: str) -> int:
        """The version that the next event of a stream gets."""
        return (self.versions.get(stream) or 0) + 1

    def fold(self, event: AnyEvent, recorded: Recorded) -> None:
        """Lets an event that follows the head have its effects."""
        self.take_effect(event, recorded)
        self.head = Head(recorded.position, recorded.hash, recorded.recorded_at)

    def take_effect(self, event: AnyEvent, recorded: Recorded) -> None:
        """Lets an event have its effects, and leaves the head to the caller."""
        for handler in self._handlers[type(event)]:
            try:
                handler(self, event, recorded)
            except MissingRow as missing:
                # Tables that are not in memory at all are nobody's business here.
                if missing.table.name in RESIDENT and missing.table.name not in PARTIAL:
                    raise
                # The event holds the whole thing as it now is, so it tells what the row would.
                if isinstance(event, TaskUpdated | EmailUpdated):
                    self.absent.put(recorded.stream, RESIDENT[missing.table.name].is_active(event))
        if keep_index := _INDEXED.get(type(event)):
            keep_index(self, event)
        self.versions.put(recorded.stream, recorded.version)

    def _changes_of(self, name: str) -> dict[Any, Any]:
        return self.layers[RESIDENT[name].table].changes

    def rebase(self, squad: Squad) -> None:
        """Stands on a squad from now on that has taken over what this draft stood on."""
        self.layers.rebase(squad)
        self.versions.below, self.holders.below = squad.versions, squad.holders
        self.gmail_ids.below = squad.gmail_ids

    def keep(self) -> None:
        """What was folded so far stays, whatever comes of the next command."""
        self.journal.clear()
        self._safe_head = self.head

    def roll_back(self) -> None:
        """Takes back what was folded since the last `keep`; nobody asks that of a `whole` one."""
        while self.journal:
            changes, key, before = self.journal.pop()
            if before is _ABSENT:
                del changes[key]
            else:
                changes[key] = before
        self.head = self._safe_head


def _lasts(draft: Draft, event: OperationStarted | OperationRenewed | TokensReserved, *, name: str) -> None:
    if event.expires_at < draft.spared_until[name]:
        draft.spared_until[name] = event.expires_at


def _hold(draft: Draft, event: OperationStarted) -> None:
    _lasts(draft, event, name=OPERATIONS.name)
    holders = draft.holders
    for resource in map(key_of_resource, event.resources.items()):
        holders.put(resource, with_id(holders.get(resource), event.operation_id))


def _let_go(draft: Draft, event: OperationFinished | OperationExpired) -> None:
    operation = draft.rows(OPERATIONS).get(event.operation_id)
    for resource in operation.resources.items() if operation else ():
        left = [holder for holder in draft.claims(resource) if holder != event.operation_id]
        draft.holders.put(key_of_resource(resource), ",".join(left))


def _know(draft: Draft, event: EmailReceived) -> None:
    draft.gmail_ids.put(event.gmail_message_id, event.email_id)


_INDEXED: dict[type[AnyEvent], Callable[[Draft, Any], None]] = {
    OperationStarted: _hold,
    OperationRenewed: partial(_lasts, name=OPERATIONS.name),
    TokensReserved: partial(_lasts, name=RESERVATIONS.name),
    OperationFinished: _let_go,
    OperationExpired: _let_go,
    EmailReceived: _know,
}
"""What an event changes beside the rows."""

"""The decision state: what must be known to decide, folded to the log's very last event.

It is the projections' rows in memory, as far as they are active; finished things leave it. `Squad` is the
committed state that everybody reads. A `Draft` is a thin layer above it in which one batch is decided:
commands see what those before them in the batch did, and the commit merges the layer down or throws it
away. The folds are the projections' own; nothing about events is said twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore.events import (
    EmailReceived,
    EmailUpdated,
    OperationExpired,
    OperationFinished,
    OperationStarted,
    TaskUpdated,
)
from eventstore.recorded import EMPTY_LOG, Head
from eventstore.subjects import NO_TRACE
from projections import HANDLERS
from projections.agents import AGENTS
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
from projections.emails import EMAILS
from projections.jobs import JOBS
from projections.keys import ACCESS, KEYS
from projections.operations import OPERATIONS
from projections.orchestrator import ORCHESTRATOR, THE_ORCHESTRATOR, OrchestratorRow
from projections.projection import MissingRow, Table
from projections.runs import RUNS
from projections.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import date, datetime

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from eventstore.subjects import Trace
    from projections.projection import K, R, Rows

Resource = tuple[str, str]
"""A kind and a value, such as ("emailId", "email-123")."""

_ABSENT: Any = object()


class Residence(NamedTuple):
    """Which rows of a table stay in memory, and the stream whose version is kept with each."""

    table: Table[Any, Any]
    is_active: Callable[[Any], bool]
    stream: Callable[[Any], str | None]


RESIDENT: dict[str, Residence] = {
    residence.table.name: residence
    for residence in (
        Residence(AGENTS, lambda row: True, lambda row: f"agent-{row.name}"),
        Residence(OPERATIONS, lambda row: row.state == "active", lambda row: f"operation-{row.id}"),
        Residence(RESERVATIONS, lambda row: row.state == "active", lambda row: f"reservation-{row.id}"),
        Residence(
            BUDGET_DAYS,
            # Yesterday stays as long as one of its reservations may still be settled.
            lambda row: row.closed_at is None or row.reserved != 0,
            lambda row: f"budget-{row.day.isoformat()}",
        ),
        Residence(BUDGETS, lambda row: True, lambda row: None),
        Residence(POLICY, lambda row: True, lambda row: "policy"),
        Residence(ORCHESTRATOR, lambda row: True, lambda row: "orchestrator"),
        Residence(JOBS, lambda row: not row.removed, lambda row: f"job-{row.name}"),
        Residence(RUNS, lambda row: row.status == "running", lambda row: f"run-{row.id}"),
        Residence(KEYS, lambda row: row.state == "active", lambda row: f"key-{row.id}"),
        Residence(ACCESS, lambda row: True, lambda row: None),
        Residence(TASKS, lambda row: row.status != "completed", lambda row: f"task-{row.id}"),
        Residence(
            EMAILS, lambda row: row.status not in ("sent", "archived"), lambda row: f"email-{row.id}"
        ),
    )
}
"""The tables that live in memory. Messages and conflicts do not: they are finished as they happen."""

PARTIAL = frozenset({TASKS.name, EMAILS.name, KEYS.name})
"""Tables whose absent rows may exist: they are read from the log when a command needs them.

One that was finished, left memory and was opened again by another process is open and not in memory:
`Squad.absent` knows of it, so that whoever needs all that is open can have it read.
"""


class State:
    """The state as deciders and readers see it, committed or drafted."""

    head: Head = EMPTY_LOG
    """Where the log ended when the state was folded."""
    looked_at: datetime | None = None
    """When it was last looked for what the passing of time makes happen."""
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
        return next((day for day in self.all(BUDGET_DAYS) if day.closed_at is None), None)

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


class Squad(State):
    """The committed state. Only the writer changes it, by merging drafts."""

    def __init__(self) -> None:
        self.head = EMPTY_LOG
        self.tables: dict[str, dict[Any, Any]] = {name: {} for name in RESIDENT}
        self.versions: dict[str, int] = {}
        self.holders: dict[Resource, tuple[str, ...]] = {}
        self.gmail_ids: dict[str, str] = {}
        self.absent: set[str] = set()
        """Streams of tasks and e-mails that are open and not in memory."""
        self._days_of_parts: set[date] = set()

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """One table's active rows, to read."""
        return self.tables[table.name]  # type: ignore[return-value]

    def all(self, table: Table[K, R], /) -> Iterable[R]:
        """One table's active rows, in no order."""
        return self.tables[table.name].values()

    def claims(self, resource: Resource, /) -> tuple[str, ...]:
        """Ids of the active operations that name a resource, the oldest first."""
        return self.holders.get(resource, ())

    def email_with(self, gmail_message_id: str, /) -> str | None:
        """The id of the e-mail with this Gmail message id, where it is in memory."""
        return self.gmail_ids.get(gmail_message_id)

    def copy(self) -> Squad:
        """The squad as it is now, whatever becomes of this one. The rows are shared: they never change."""
        copy = Squad()
        copy.head, copy.looked_at = self.head, self.looked_at
        copy.tables = {name: rows.copy() for name, rows in self.tables.items()}
        copy.versions, copy.holders = self.versions.copy(), self.holders.copy()
        copy.gmail_ids, copy.absent = self.gmail_ids.copy(), self.absent.copy()
        copy._days_of_parts = self._days_of_parts.copy()
        return copy

    def load(self, table: Table[K, R], rows: Iterable[R]) -> None:
        """Takes in rows that were read from a table, as far as they are active.

        A table may come in several parts; operations then in the order in which they began.
        """
        residence, kept = RESIDENT[table.name], self.tables[table.name]
        active: list[Any] = [row for row in rows if residence.is_active(row)]
        kept.update((table.key_of(row), row) for row in active)
        if residence.table is OPERATIONS:
            for operation in sorted(active, key=lambda row: row.fencing_token):
                for resource in operation.resources.items():
                    self.holders[resource] = (*self.holders.get(resource, ()), operation.id)
        if residence.table is EMAILS:
            self.gmail_ids.update((email.gmail_message_id, email.id) for email in active)

    def streams(self) -> list[str]:
        """The streams whose last versions must be known."""
        return [
            stream
            for name, rows in self.tables.items()
            for row in rows.values()
            if (stream := RESIDENT[name].stream(row))
        ]

    def merge(self, draft: Draft) -> None:
        """Takes over what a draft changed, and lets finished things go."""
        self.head, self.looked_at = draft.head, draft.looked_at
        for stream, is_open in draft.absent.changes.items():
            (self.absent.add if is_open else self.absent.discard)(stream)
        for name, layer in draft.layers.items():
            if residence := RESIDENT.get(name):
                self._merge_rows(residence, layer, draft)
        if BUDGET_DAYS.name in draft.layers:
            self._forget_past_days()
        for stream, version in draft.versions.changes.items():
            if stream in self.versions:
                self.versions[stream] = version
        for resource, ids in draft.holders.changes.items():
            if ids:
                self.holders[resource] = ids
            else:
                self.holders.pop(resource, None)
        open_emails = self.tables[EMAILS.name]
        for gmail_id, email_id in draft.gmail_ids.changes.items():
            if email_id in open_emails:
                self.gmail_ids[gmail_id] = email_id

    def _merge_rows(self, residence: Residence, layer: _Layer, draft: Draft) -> None:
        kept = self.tables[residence.table.name]
        for key, row in layer.changes.items():
            stream = residence.stream(row)
            if residence.table.name in PARTIAL:
                self.absent.discard(stream)
            if residence.is_active(row):
                kept[key] = row
                if stream:
                    self.versions[stream] = draft.versions.get(stream)
                continue
            kept.pop(key, None)
            if stream:
                self.versions.pop(stream, None)
            if residence.table is EMAILS:
                self.gmail_ids.pop(row.gmail_message_id, None)

    def _forget_past_days(self) -> None:
        """A day that leaves takes its agents' parts along."""
        days, parts = self.tables[BUDGET_DAYS.name], self.tables[BUDGETS.name]
        if self._days_of_parts != days.keys():
            for key in [key for key in parts if key[0] not in days]:
                del parts[key]
            self._days_of_parts = set(days)


class _Layer:
    """A map above a map. What it writes it also notes in a journal, so that it can be taken back."""

    __slots__ = ("below", "changes", "journal")

    def __init__(
        self, below: Mapping[Any, Any] | _Layer, journal: list[tuple[dict[Any, Any], Any, Any]]
    ) -> None:
        self.below = below
        self.changes: dict[Any, Any] = {}
        self.journal = journal

    def get(self, key: Any, /) -> Any:
        value = self.changes.get(key, _ABSENT)
        return self.below.get(key) if value is _ABSENT else value

    def put(self, key: Any, value: Any, /) -> None:
        self.journal.append((self.changes, key, self.changes.get(key, _ABSENT)))
        self.changes[key] = value

    def items(self) -> Iterator[tuple[Any, Any]]:
        for key, value in self.below.items():
            if key not in self.changes:
                yield key, value
        yield from self.changes.items()

    def values(self) -> Iterator[Any]:
        return (value for _, value in self.items())


class Draft(State):
    """A batch under decision: the squad as it will be if the batch's events get into the log.

    One batch may be decided above another one that is still on its way there.
    """

    def __init__(self, base: Squad | Draft) -> None:
        self.head, self.looked_at = base.head, base.looked_at
        self.journal: list[tuple[dict[Any, Any], Any, Any]] = []
        self.layers: dict[str, _Layer] = {}
        self.versions: _Layer = _Layer(base.versions, self.journal)
        self.holders: _Layer = _Layer(base.holders, self.journal)
        self.gmail_ids: _Layer = _Layer(base.gmail_ids, self.journal)
        self.absent = _Layer({}, self.journal)
        self.traces: dict[str, Trace] = {}
        self._base = base
        self._safe_head = base.head

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """One table's rows."""
        return self._layer(table)

    def all(self, table: Table[K, R], /) -> Iterable[R]:
        """One table's rows, in no order; those finished within the draft among them."""
        return self._layer(table).values()

    def claims(self, resource: Resource, /) -> tuple[str, ...]:
        """Ids of the active operations that name a resource, the oldest first."""
        return self.holders.get(resource) or ()

    def email_with(self, gmail_message_id: str, /) -> str | None:
        """The id of the e-mail with this Gmail message id, where it is in memory or was looked up."""
        return self.gmail_ids.get(gmail_message_id)  # type: ignore[no-any-return]

    def next_version(self, stream: str) -> int:
        """The version that the next event of a stream gets."""
        return (self.versions.get(stream) or 0) + 1

    def fold(self, event: AnyEvent, recorded: Recorded) -> None:
        """Lets an event that follows the head have its effects."""
        for handler in HANDLERS[type(event)]:
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
        self.head = Head(recorded.position, recorded.hash, recorded.recorded_at)

    def rebase(self, squad: Squad) -> None:
        """Stands on a squad from now on that has taken over what this draft stood on."""
        self._base = squad
        for name, layer in self.layers.items():
            layer.below = squad.tables.get(name, {})
        self.versions.below, self.holders.below = squad.versions, squad.holders
        self.gmail_ids.below = squad.gmail_ids

    def keep(self) -> None:
        """What was folded so far stays, whatever comes of the next command."""
        self.journal.clear()
        self._safe_head = self.head

    def roll_back(self) -> None:
        """Takes back what was folded since the last `keep`."""
        while self.journal:
            changes, key, before = self.journal.pop()
            if before is _ABSENT:
                del changes[key]
            else:
                changes[key] = before
        self.head = self._safe_head

    def _layer(self, table: Table[Any, Any]) -> _Layer:
        layer = self.layers.get(table.name)
        if layer is None:
            base = self._base
            below = base._layer(table) if isinstance(base, Draft) else base.tables.get(table.name, {})
            layer = self.layers[table.name] = _Layer(below, self.journal)
        return layer


def _hold(draft: Draft, event: OperationStarted) -> None:
    for resource in event.resources.items():
        draft.holders.put(resource, (*draft.claims(resource), event.operation_id))


def _let_go(draft: Draft, event: OperationFinished | OperationExpired) -> None:
    operation = draft.rows(OPERATIONS).get(event.operation_id)
    for resource in operation.resources.items() if operation else ():
        left = tuple(holder for holder in draft.claims(resource) if holder != event.operation_id)
        draft.holders.put(resource, left)


def _know(draft: Draft, event: EmailReceived) -> None:
    draft.gmail_ids.put(event.gmail_message_id, event.email_id)


_INDEXED: dict[type[AnyEvent], Callable[[Draft, Any], None]] = {
    OperationStarted: _hold,
    OperationFinished: _let_go,
    OperationExpired: _let_go,
    EmailReceived: _know,
}
"""What an event changes beside the rows."""

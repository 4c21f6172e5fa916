"""The committed state in memory: everything needed to decide.

Everybody reads it; finished entities leave it. What every decision asks for is indexed: who holds a
resource, the runs of a job, an agent's reservations, what expires, which agents go quiet, when
jobs are due.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from eventstore.recorded import EMPTY_LOG
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS, BUDGETS, RESERVATIONS
from projections.emails import EMAILS
from projections.jobs import JOBS
from projections.operations import OPERATIONS
from projections.runs import RUNS
from service.memory.deadlines import NEVER, Deadlines
from service.memory.due_jobs import DueJobs
from service.memory.indexes import OpenReservations, RestingAgents, RunsInProgress
from service.memory.residence import PARTIAL, RESIDENT, Residence
from service.memory.state import (
    EXPIRING,
    State,
    expiry,
    ids_in,
    key_of_resource,
    with_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date, datetime

    from projections.agents import AgentRow
    from projections.budgets import ReservationRow
    from projections.projection import K, R, Rows, Table
    from projections.runs import RunRow
    from service.memory.draft import Draft, Layer
    from service.memory.indexes import Index
    from service.memory.state import Resource


class Squad(State):
    """The committed state. Only the writer changes it, by merging drafts."""

    def __init__(self) -> None:
        self.head = EMPTY_LOG
        self.no_expiry_before = dict.fromkeys(EXPIRING, NEVER)
        self.tables: dict[str, dict[Any, Any]] = {name: {} for name in RESIDENT}
        self.versions: dict[str, int] = {}
        self.holders: dict[str, str] = {}
        """By `key_of_resource`, the ids of the active operations that name the resource, joined by commas:
        there can be many, and the garbage collector does not traverse strings."""
        self.gmail_ids: dict[str, str] = {}
        self.absent: set[str] = set()
        """Streams of tasks and e-mails that are open but not in memory."""
        self._days_of_shares: set[date] = set()
        self._keep_indexes(RestingAgents(self.tables[AGENTS.name]))

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """Return one table's active rows, for reading."""
        return self.tables[table.name]  # type: ignore[return-value]

    def all(self, table: Table[K, R], /) -> Iterable[R]:
        """Return one table's active rows, in no order, except that operations are ordered by their start.

        They are loaded in that order, each new one is added at the end, and none is ever added again.
        """
        return self.tables[table.name].values()

    def claims(self, resource: Resource, /) -> tuple[str, ...]:
        """Return the ids of the active operations that name a resource, the oldest first."""
        return ids_in(self.holders.get(key_of_resource(resource)))

    def expired(self, name: str, now: datetime, /) -> Iterable[Any]:
        """Yield the expired rows of a table in `EXPIRING`, in the order in which they began."""
        return self._expiring[name].expired(now)

    def first_to_expire(self, name: str, now: datetime, /) -> datetime:
        """Return when the next row of a table in `EXPIRING` expires, of those that have not yet."""
        return self._expiring[name].next(now)

    def reservations_of(self, agent: str, /) -> Iterable[ReservationRow]:
        """Return the open reservations of an agent, in no order."""
        return self.open_reservations.of_agent(agent)

    def silent_since(self, active: datetime, idle: datetime, /) -> Iterable[AgentRow]:
        """Yield the resting agents last heard of by then, in the order in which they began to rest."""
        return self.resting_agents.silent_since(active, idle)

    def runs_of(self, job: str, /) -> Iterable[RunRow]:
        """Return the runs of a job that are in progress, in no order."""
        return self.runs_in_progress.of_job(job)

    def email_with(self, gmail_message_id: str, /) -> str | None:
        """Return the id of the e-mail with this Gmail message id, if it is in memory."""
        return self.gmail_ids.get(gmail_message_id)

    def copy(self) -> Squad:
        """Return a copy that is independent of later changes. The rows are shared: they are immutable."""
        copy = Squad()
        copy.head, copy.checked_at = self.head, self.checked_at
        copy.no_expiry_before = dict(self.no_expiry_before)
        copy.tables = {name: rows.copy() for name, rows in self.tables.items()}
        copy.versions, copy.holders = self.versions.copy(), self.holders.copy()
        copy.gmail_ids, copy.absent = self.gmail_ids.copy(), self.absent.copy()
        copy._days_of_shares = self._days_of_shares.copy()
        copy._keep_indexes(self.resting_agents.copy(copy.tables[AGENTS.name]))
        return copy

    def _keep_indexes(self, resting_agents: RestingAgents) -> None:
        tables = self.tables
        self.open_reservations = OpenReservations(tables[RESERVATIONS.name])
        self._expiring: dict[str, Deadlines[Any]] = {
            OPERATIONS.name: Deadlines(tables[OPERATIONS.name], expiry, attrgetter("fencing_token")),
            RESERVATIONS.name: self.open_reservations.deadlines,
        }
        self.due_jobs = DueJobs(tables[JOBS.name])
        self.resting_agents = resting_agents
        self.runs_in_progress = RunsInProgress(tables[RUNS.name])
        self._indexes: dict[str, Index] = {
            **self._expiring,
            RESERVATIONS.name: self.open_reservations,
            JOBS.name: self.due_jobs,
            AGENTS.name: resting_agents,
            RUNS.name: self.runs_in_progress,
        }

    def load(self, table: Table[K, R], rows: Iterable[R]) -> None:
        """Load the active ones of rows that were read from a table.

        A table may be loaded in several parts; operations then in the order of their start.
        """
        residence, kept = RESIDENT[table.name], self.tables[table.name]
        active: list[Any] = [row for row in rows if residence.is_active(row)]
        if residence.table is OPERATIONS:
            active.sort(key=lambda row: row.fencing_token)
        loaded = {table.key_of(row): row for row in active}
        kept.update(loaded)
        if index := self._indexes.get(table.name):
            index.change(loaded)
        if table.name in EXPIRING:
            known = self.no_expiry_before[table.name]
            soonest = min((row.expires_at for row in active), default=known)
            self.no_expiry_before = {**self.no_expiry_before, table.name: min(known, soonest)}
        if residence.table is OPERATIONS:
            for operation in active:
                for resource in map(key_of_resource, operation.resources.items()):
                    self.holders[resource] = with_id(self.holders.get(resource), operation.id)
        if residence.table is EMAILS:
            self.gmail_ids.update((email.gmail_message_id, email.id) for email in active)

    def streams(self) -> list[str]:
        """Return the streams whose last versions must be known."""
        return [
            stream
            for name, rows in self.tables.items()
            for row in rows.values()
            if (stream := RESIDENT[name].stream(row))
        ]

    def merge(self, draft: Draft) -> None:
        """Merge the changes of a draft, and drop what is finished."""
        self.head, self.checked_at, self.no_expiry_before = (
            draft.head,
            draft.checked_at,
            draft.no_expiry_before,
        )
        self._open_day = draft._open_day
        for stream, is_open in draft.absent.changes.items():
            (self.absent.add if is_open else self.absent.discard)(stream)
        for table, layer in draft.layers.items():
            if residence := RESIDENT.get(table.name):
                self._merge_rows(residence, layer, draft)
            if index := self._indexes.get(table.name):
                index.change(layer.changes)
        if BUDGET_DAYS in draft.layers:
            self._drop_past_shares()
        for stream, version in draft.versions.changes.items():
            if stream in self.versions:
                self.versions[stream] = version
        for resource, ids in draft.holders.changes.items():
            if ids:
                self.holders[resource] = ids
            else:
                self.holders.pop(resource, None)

    def _merge_rows(self, residence: Residence, layer: Layer, draft: Draft) -> None:
        kept, is_partial = self.tables[residence.table.name], residence.table.name in PARTIAL
        for key, row in layer.changes.items():
            is_active = residence.is_active(row)
            if is_active and key in kept and not is_partial:
                # Its stream's version is kept already; `merge` updates it afterwards.
                kept[key] = row
                continue
            stream = residence.stream(row)
            if is_partial:
                self.absent.discard(stream)
            if is_active:
                kept[key] = row
                if stream:
                    self.versions[stream] = draft.versions.get(stream)
                if residence.table is EMAILS:
                    # Not from the draft's ids: an earlier draft may have recalled it, and left it closed.
                    self.gmail_ids[row.gmail_message_id] = row.id
                continue
            kept.pop(key, None)
            if stream:
                self.versions.pop(stream, None)
            if residence.table is EMAILS:
                self.gmail_ids.pop(row.gmail_message_id, None)

    def _drop_past_shares(self) -> None:
        """Drop the agents' shares of the days that are no longer in memory."""
        days, shares = self.tables[BUDGET_DAYS.name], self.tables[BUDGETS.name]
        if self._days_of_shares != days.keys():
            for key in [key for key in shares if key[0] not in days]:
                del shares[key]
            self._days_of_shares = set(days)

"""An in-memory stand-in for Postgres, with a clock that advances only when told to.

It implements only the statements that the writer sends, and gives the guarantees of schema.sql. An unknown
statement fails the test, so that new ones get implemented here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import astuple

from eventstore import codec, log, lookup, sealing, standby
from eventstore.events import ConflictDetected, SubjectForgotten
from eventstore.recorded import Recorded
from projections import PROJECTIONS
from projections.budgets import BUDGET_DAYS, BUDGETS
from service.history import snapshots
from service.memory.residence import RESIDENT
from tests.model.loop import Loop
from tests.model.server import Session
from tests.model.subject_keys import KEY_STATEMENTS, ServerWithKeys
from tests.support.verify import MemoryRows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.memory.squad import Squad
    from tests.model.fake_connection import Rows, Statement

DRIFT = timedelta(seconds=1)
ROUND_TRIP_SECONDS = 0.001
_TABLE = re.compile(r'SELECT .* FROM "(\w+)"')
_NO_ROWS: Rows = []


class _View(NamedTuple):
    """What a repeatable read transaction sees."""

    length: int
    tables: dict[str, list[Any]]
    positions: dict[str, int]
    snapshots: dict[int, bytes]


class InMemory(ServerWithKeys):
    """The log, the keys, the read tables and the snapshots, in memory."""

    def __init__(self, now: datetime) -> None:
        self._now, self._elapsed_seconds = now, 0.0
        super().__init__()
        self._projected = defaultdict[str, dict[Any, Any]](dict)
        self._tables: dict[str, list[Any]] = {}
        self._positions: dict[str, int] = {}
        self._snapshots: dict[int, bytes] = {}

    # time -------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The server's clock."""
        return self._now

    def monotonic(self) -> float:
        """Elapsed seconds."""
        return self._elapsed_seconds

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed_seconds += seconds
        self._now += timedelta(seconds=seconds)
        self.latest = max(self.latest, self._now)
        self.end_idle_transaction()

    def step_clock(self, seconds: float) -> None:
        """Step the server's clock."""
        self._now += timedelta(seconds=seconds)
        self.latest = max(self.latest, self._now)

    # the rest of the database -------------------------------------------------------------------------

    def open(self) -> Session:
        """Open a session for a client."""
        return Session()

    def close(self) -> None:
        """Do nothing: it holds no resources."""

    def reveal(self, recorded: Sequence[Recorded]) -> list[Recorded]:
        """The events, decrypted with the keys that exist now."""
        return [sealing.reveal_event(one, self.secrets()) for one in recorded]

    def project(self, behind: int, stopped: int | None) -> None:
        """Fold the log into the read tables."""
        upto = max(len(self.log) - behind, *self._positions.values(), 0)
        view, decrypted = _Tables(self._projected), self.reveal(self.log[:upto])
        positions = dict(self._positions)
        for number, projection in enumerate(PROJECTIONS):
            at = positions.setdefault(projection.name, 0)
            if number != stopped:
                for recorded in decrypted[at:]:
                    projection.apply(view, codec.decode(recorded), recorded)
                positions[projection.name] = upto
        self._positions = positions
        self._tables = {name: list(self._projected[name].values()) for name in RESIDENT}

    def store_snapshot(self, squad: Squad) -> None:
        """Store a snapshot."""
        loop = Loop(self.monotonic)  # type: ignore[abstract]
        state = loop.wait_for(loop.create_task(snapshots.pack(squad)))
        self._snapshots = {**self._snapshots, squad.head.position: state}

    def _release_lock(self, session: Session) -> None:
        super()._release_lock(session)
        session.view = None
        self.discard_keys_of(session)

    # statements -------------------------------------------------------------------------------------------

    def _execute(self, session: Session, statement: Statement) -> list[Rows]:
        self._elapsed_seconds += ROUND_TRIP_SECONDS
        self._now += timedelta(seconds=ROUND_TRIP_SECONDS)
        if (execute := _STATEMENTS.get(statement.query)) is None:
            if not (named := _TABLE.match(statement.query)):
                raise AssertionError(f"the model does not know this statement: {statement.query}")
            return [self._select(session, named[1])]
        return execute(self, session, *_positional(statement.parameters))

    def _length(self, session: Session) -> int:
        return self._seen_by(session).length

    def _begin(self, session: Session) -> list[Rows]:
        session.view = self._seen_by(session)
        return [_NO_ROWS]

    def _roll_back(self, session: Session) -> list[Rows]:
        session.view = None
        return [_NO_ROWS]

    def _seen_by(self, session: Session) -> _View:
        return session.view or _View(len(self.log), self._tables, self._positions, self._snapshots)

    def _no_result(self, _: Session) -> list[Rows]:
        return [_NO_ROWS]

    def _clock(self, _: Session) -> list[Rows]:
        return [[(self._now,)]]

    def _head(self, session: Session) -> list[Rows]:
        return [[(self._length(session),)]]

    def _read_one(self, session: Session, position: int) -> list[Rows]:
        return [[tuple(self.log[position - 1])] if position <= self._length(session) else []]

    def _read_after(self, session: Session, position: int, limit: int) -> list[Rows]:
        return [[tuple(one) for one in self.log[position : self._length(session)][:limit]]]

    def _read_streams(self, session: Session, streams: list[str]) -> list[Rows]:
        upto = self._length(session)
        return [[tuple(one) for one in self.events.of_streams(streams) if one.position <= upto]]

    def _read_streams_and_beginnings(
        self, session: Session, streams: list[str], excerpts: list[str], short: int
    ) -> list[Rows]:
        [found] = self._read_streams(session, [*streams, *excerpts])
        return [
            [one for one in found if Recorded(*one).stream in streams or Recorded(*one).version <= short]
        ]

    def _read_excerpts(
        self, session: Session, streams: list[str], of_agents: list[str], agents: list[str], _: list[str]
    ) -> list[Rows]:
        found: dict[int, tuple[Any, ...]] = {}
        for stream in streams:
            [rows] = self._read_streams(session, [stream])
            events = [Recorded(*row) for row in rows]
            wanted = [*events[:1], *[one for one in events if one.type != ConflictDetected.type][-2:]]
            if stream in of_agents:
                wanted += [one for one in events[1:] if getattr(codec.decode(one), "agent", None) in agents]
            found |= {one.position: tuple(one) for one in wanted}
        return [[found[position] for position in sorted(found)]]

    def _versions(self, _: Session, streams: list[str], upto: int) -> list[Rows]:
        last = {one.stream: one.version for one in self.events.of_streams(streams) if one.position <= upto}
        return [list(last.items())]

    def _find_ids(self, _: Session, ids: list[str]) -> list[Rows]:
        return [[(id_, self.events.ids[id_]) for id_ in ids if id_ in self.events.ids]]

    def _find_gmail(self, _: Session, gmail_ids: list[str]) -> list[Rows]:
        return [[(self.events.gmail_ids[id_],) for id_ in gmail_ids if id_ in self.events.gmail_ids]]

    def _lock_and_read(self, session: Session, position: int, limit: int) -> list[Rows]:
        page = self._read_after(session, position, limit)
        return [_NO_ROWS, _NO_ROWS, [(0.0,)], *page, [(self._now,)]]

    def _append(self, _: Session, expected: int, decided_at: datetime, *columns: Any) -> list[Rows]:
        head = len(self.log)
        appended = self._is_the_head(expected) and abs(self._now - decided_at) <= DRIFT
        if appended:
            batch = self.events.rows(expected, *columns)
            self.events.check(batch)
            self._append_to_log(batch)
            self.events.take(batch)
            for one in batch:
                if one.type == SubjectForgotten.type:
                    self.destroy_key(self.events.key_destroyed_by(one))
                    self._snapshots = {}
            head = len(self.log)
        return [[(appended, head, self._now, 0.0)]]

    def _is_the_head(self, expected: int) -> bool:
        return expected == len(self.log)

    def _append_if_same(
        self, session: Session, position: int, hash_: bytes, expected: int, *more: Any
    ) -> list[Rows]:
        is_same = position <= len(self.log) and self.log[position - 1].hash == hash_
        return self._append(session, expected if is_same else -1, *more)

    def _append_and_commit(self, session: Session, *parameters: Any) -> list[Rows]:
        return self._committed(session, self._append(session, *parameters))

    def _append_if_same_and_commit(self, session: Session, *parameters: Any) -> list[Rows]:
        return self._committed(session, self._append_if_same(session, *parameters))

    def _committed(self, session: Session, answer: list[Rows]) -> list[Rows]:
        self.commit_keys_of(session)
        return [*answer, _NO_ROWS]

    # tables and snapshots ---------------------------------------------------------------------------------

    def _projections(self, session: Session) -> list[Rows]:
        positions = self._seen_by(session).positions
        return [
            [(one.name, positions[one.name], one.fold_version) for one in PROJECTIONS] if positions else []
        ]

    def _select(self, session: Session, name: str) -> Rows:
        active = [row for row in session.view.tables[name] if RESIDENT[name].is_active(row)]
        if name == BUDGETS.name:
            days = {row[0] for row in self._select(session, BUDGET_DAYS.name)}
            active = [row for row in active if row.day in days]
        return [astuple(row) for row in active]

    def _snapshot_positions(self, session: Session, fold: str) -> list[Rows]:
        assert fold == snapshots.FOLD
        return [[(position,) for position in sorted(self._seen_by(session).snapshots)]]

    def _nearest_snapshot(self, session: Session, _: str, position: int) -> list[Rows]:
        seen = self._seen_by(session)
        upto = min(position, seen.length)
        found = max((at for at in seen.snapshots if at <= upto), default=None)
        if found is None:
            return [[]]
        last = self.log[found - 1]
        return [[(found, last.hash, last.recorded_at, seen.snapshots[found])]]

    def _may_store(self, _: Session) -> list[Rows]:
        return [[(False,)]]


class _Tables:
    """A view of all rows, for a projection."""

    def __init__(self, tables: dict[str, dict[Any, Any]]) -> None:
        self._tables = tables

    def rows(self, table: Any, /) -> Any:
        return MemoryRows(self._tables[table.name])


def _positional(parameters: Any) -> Sequence[Any]:
    if isinstance(parameters, dict):
        return list(parameters.values())
    return parameters or ()


_COLUMNS = log.COLUMNS
_STATEMENTS: dict[str, Callable[..., list[Rows]]] = {
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY": InMemory._begin,
    "ROLLBACK": InMemory._roll_back,
    log._CLOCK: InMemory._clock,
    log._APPEND: InMemory._append,
    log._APPEND_IF_SAME: InMemory._append_if_same,
    f"{log._APPEND}; COMMIT": InMemory._append_and_commit,
    f"{log._APPEND_IF_SAME}; COMMIT": InMemory._append_if_same_and_commit,
    # There is no standby to wait for.
    standby._CONFIRM: InMemory._no_result,
    log._LOCK_AND_READ: InMemory._lock_and_read,
    log._READ_AFTER: InMemory._read_after,
    lookup._READ_STREAMS: InMemory._read_streams,
    lookup._READ_STREAMS_AND_BEGINNINGS: InMemory._read_streams_and_beginnings,
    lookup._READ_EXCERPTS: InMemory._read_excerpts,
    f"SELECT {_COLUMNS} FROM events WHERE position = %s": InMemory._read_one,
    "SELECT coalesce(max(position), 0) FROM events": InMemory._head,
    "SELECT id::text, position FROM events WHERE id = ANY(%s::uuid[])": InMemory._find_ids,
    lookup._LAST_VERSIONS: InMemory._versions,
    "SELECT stream FROM events WHERE type = 'email_received' AND data ->> 'gmail_message_id' = ANY(%s)": (
        InMemory._find_gmail
    ),
    "SELECT name, position, fold_version FROM projections": InMemory._projections,
    snapshots._POSITIONS: InMemory._snapshot_positions,
    snapshots._NEAREST: InMemory._nearest_snapshot,
    snapshots._MAY_STORE: InMemory._may_store,
    **KEY_STATEMENTS,
}

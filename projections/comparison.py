"""Checks that every read table is a fold of the log.

The log is folded again, into temporary tables (`projections.refold`), and the database joins them with the
live ones. Those change meanwhile. So the long part, the fold, runs without a snapshot; only then is one
taken, the last events are folded up to each projection's position in it, and the tables are joined. Every
table is compared as of its own position, while the service writes, and nothing waits for it; the snapshot,
which holds back vacuum, lasts only as long as the join. Memory does not grow with the log.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, LiteralString, NamedTuple

from psycopg import sql

from eventstore import log
from eventstore.definitions import differing_tables
from eventstore.errors import StoreBusy
from eventstore.events import SubjectForgotten
from eventstore.queries import one_row, one_value
from eventstore.translation import translating
from projections import PROJECTIONS
from projections.comparison_sql import DIFFER, JOINED, format_query
from projections.refold import refolding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventstore.connection import Connection
    from projections.projection import Projection, Table
    from projections.refold import Progress, Refold

Kind = Literal[
    "changed",
    "missing",
    "extra",
    "doubled",
    "no table",
    "another table",
    "stopped",
    "other fold",
    "never folded",
    "beyond the log",
    "not erased yet",
]
"""A row that is changed, missing or extra; duplicate keys; a table that does not exist, or that the rows do
not fit into; a projection that failed, was folded by other code or not at all, is beyond the log's head, or
still holds what was forgotten."""

ERASURE_TIMEOUT_SECONDS = 5.0
"""How long the tables may take to follow the log to where somebody was forgotten."""

_POLL_SECONDS = 0.1

_SHOWN_CHARACTERS = 80

_FORGOTTEN: LiteralString = "SELECT coalesce(max(position), 0) FROM events WHERE type = %s"
_COUNTS: LiteralString = (
    """
    SELECT count(*) FILTER (WHERE l.ctid IS NOT NULL AND f.ctid IS NOT NULL
                              AND ROW({live_row}) IS DISTINCT FROM ROW({folded_row})),
           count(*) FILTER (WHERE l.ctid IS NULL),
           count(*) FILTER (WHERE f.ctid IS NULL),
           count(*) FILTER (WHERE l.ctid IS NOT NULL AND f.ctid IS NOT NULL),
           (SELECT count(*) FROM {folded})
    FROM """
    + JOINED
)
_FIRST: LiteralString = (
    """
    SELECT CASE WHEN l.ctid IS NULL THEN 'missing' WHEN f.ctid IS NULL THEN 'extra' ELSE 'changed' END,
           ARRAY[{either_key_as_text}], ARRAY[{both_as_text}], ARRAY[{differing}]
    FROM """
    + JOINED
    + " WHERE "
    + DIFFER
    + " ORDER BY {either_key} LIMIT 1"
)


@dataclass(frozen=True)
class Difference:
    """A deviation from the log: the first bad row of a table, or a projection as a whole."""

    kind: Kind
    projection: str
    position: int
    """The projection's own position, as of which it was compared."""
    table: str | None = None
    key: Mapping[str, str | None] = field(default_factory=dict)
    """The key of the first bad row, in key order."""
    column: str | None = None
    """The first column in which a changed row differs."""
    found: str | None = None
    expected: str | None = None
    changed: int = 0
    missing: int = 0
    extra: int = 0
    """How many rows of the table are changed, missing and extra, including the first bad one."""
    detail: str = ""

    def __str__(self) -> str:
        if self.table is None:
            return f"{self.projection}: {self.detail}"
        row = f"the row {', '.join(f'{column}={_brief(value)}' for column, value in self.key.items())}"
        match self.kind:
            case "changed":
                what = f"{row} has {self.column} {_brief(self.found)}, the log says {_brief(self.expected)}"
            case "missing":
                what = f"{row} is missing"
            case "extra":
                what = f"{row} does not come from the log"
            case _:
                what = self.detail
        counts = ((self.changed, "changed"), (self.missing, "missing"), (self.extra, "extra"))
        total = ", ".join(f"{count:,} {word}" for count, word in counts if count)
        return f"{self.table} at position {self.position}: {what}" + (f" ({total})" if total else "")


async def compare(
    dsn: str,
    schema: str,
    projections: Sequence[Projection] = PROJECTIONS,
    *,
    progress: Progress | None = None,
) -> list[Difference]:
    """Compare the read tables with a fold of the log, each as of its own position, while others write.

    Args:
        dsn: libpq connection string or URI of a primary server; the role must be able to read the squad's
            tables and to create temporary ones.
        schema: the squad's Postgres schema.
        projections: whose tables to compare; by default all of them.
        progress: called after each page with the position reached and the target position.

    Returns:
        What is wrong: at most one difference for each table, and one for each faulty projection.

    Raises:
        UnknownEventType, UnreadableEvent, LogNotUnderstood, LogBroken: the log cannot be folded.
        StoreBusy: somebody set the tables back meanwhile.
        WritesRefused: the server is not a primary.
        StoreUnavailable: the database cannot be reached.
    """
    deadlines = _ErasureDeadlines()
    async with refolding(dsn, schema, projections, name="squad comparison", progress=progress) as refold:
        while True:
            await _catch_up(refold, schema)
            try:
                with refold.rollback_on_failure(), translating():
                    async with refold.connection.transaction():
                        return await _compare(refold, schema, deadlines)
            except _ErasurePending:
                await asyncio.sleep(_POLL_SECONDS)


class _ErasurePending(Exception):
    """A table still holds what was forgotten: the projector has yet to reach that position."""


class _ErasureDeadlines:
    """How long each projection may take to reach the position where somebody was forgotten."""

    def __init__(self) -> None:
        self._deadlines: dict[str, tuple[int, float]] = {}

    def has_time(self, name: str, position: int, forgotten: int) -> bool:
        """Whether a projection at `position` still has time to reach the erasure at `forgotten`.

        The time starts at the first look, however long the fold took, and again at each erasure reached.
        """
        awaited, until = self._deadlines.get(name, (0, 0.0))
        if position >= awaited:
            until = monotonic() + ERASURE_TIMEOUT_SECONDS
            self._deadlines[name] = forgotten, until
        return monotonic() < until


async def _compare(refold: Refold, schema: str, deadlines: _ErasureDeadlines) -> list[Difference]:
    connection = refold.connection
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    states = await _read_states(connection, schema)
    end = await log.head_position(connection)
    found: list[Difference] = []
    sound: list[Projection] = []
    for name, projection in refold.projections.items():
        if difference := _state_fault(projection, states.get(name), end):
            found.append(difference)
        if difference is None or difference.kind == "stopped":
            sound.append(projection)
    await refold.fold_to({projection.name: states[projection.name].position for projection in sound})
    await refold.analyze()
    # Read after the fold and outside the snapshot: a destroyed key is missing at once.
    forgotten = await one_value(refold.reader, _FORGOTTEN, (SubjectForgotten.type,))
    others = await differing_tables(connection, schema, (table.name for table in refold.tables()))
    for projection in sound:
        name, position = projection.name, states[projection.name].position
        if refold.positions[name] != position:
            raise StoreBusy(f"{name} was set back to {position} while it was compared")
        if position < forgotten and SubjectForgotten in projection.handlers:
            if deadlines.has_time(name, position, forgotten):
                raise _ErasurePending
            detail = f"it has yet to erase what was forgotten at position {forgotten}"
            found.append(Difference("not erased yet", name, position, detail=detail))
            continue
        for table in projection.tables:
            if why := others.get(table.name):
                found.append(Difference("another table", name, position, table.name, detail=f"it {why}"))
            else:
                found += await _compare_table(connection, schema, projection, table, position)
    return found


class _ProjectionState(NamedTuple):
    position: int
    fold_version: int
    failed_position: int | None
    error: str | None


async def _read_states(connection: Connection, schema: str) -> dict[str, _ProjectionState]:
    query = sql.SQL("SELECT name, position, fold_version, failed_position, error FROM {}")
    cursor = await connection.execute(query.format(sql.Identifier(schema, "projections")))
    return {name: _ProjectionState(*state) for name, *state in await cursor.fetchall()}


async def _catch_up(refold: Refold, schema: str) -> None:
    """Fold up to the tables' positions, repeatedly, as long as that gets closer to them."""
    distance: int | None = None
    while True:
        with translating():
            states = await _read_states(refold.connection, schema)
            end = await log.head_position(refold.connection)
        targets = {
            name: min(states[name].position, end)
            for name, projection in refold.projections.items()
            if name in states and states[name].fold_version == projection.fold_version
        }
        left = max((target - refold.positions[name] for name, target in targets.items()), default=0)
        if left <= 0 or (distance is not None and left >= distance):
            return
        await refold.fold_to(targets)
        distance = left


def _state_fault(projection: Projection, state: _ProjectionState | None, end: int) -> Difference | None:
    """Return what is wrong with a projection apart from its rows; None if nothing is."""
    name, version = projection.name, projection.fold_version
    if state is None:
        return Difference("never folded", name, 0, detail="it has never been folded")
    position = state.position
    if state.fold_version != version:
        detail = f"it was folded by version {state.fold_version}, this is version {version}"
        return Difference("other fold", name, position, detail=detail)
    if position > end:
        detail = f"it claims to be at position {position}, and the log ends at {end}"
        return Difference("beyond the log", name, position, detail=detail)
    if state.failed_position is not None:
        detail = f"it stopped before position {state.failed_position}: {state.error}"
        return Difference("stopped", name, position, detail=detail)
    return None


async def _compare_table(
    connection: Connection, schema: str, projection: Projection, table: Table[Any, Any], position: int
) -> list[Difference]:
    if await one_value(connection, "SELECT to_regclass(%s) IS NULL", (f"{schema}.{table.name}",)):
        return [Difference("no table", projection.name, position, table.name, detail="it does not exist")]
    changed, missing, extra, paired, folded = await one_row(
        connection, format_query(_COUNTS, schema, table)
    )
    if paired + missing != folded:
        detail = f"duplicate rows: {paired + missing - folded:,}"
        return [Difference("doubled", projection.name, position, table.name, detail=detail)]
    if not changed + missing + extra:
        return []
    kind, key, texts, differing = await one_row(connection, format_query(_FIRST, schema, table))
    first = Difference(
        kind,
        projection.name,
        position,
        table.name,
        dict(zip(table.key, key, strict=True)),
        changed=changed,
        missing=missing,
        extra=extra,
    )
    if kind == "changed":
        column = differing.index(True)
        found, expected = texts[column]
        first = replace(first, column=table.columns[column], found=found, expected=expected)
    return [first]


def _brief(value: str | None) -> str:
    if value is None:
        return "null"
    return repr(value if len(value) <= _SHOWN_CHARACTERS else value[: _SHOWN_CHARACTERS - 1] + "…")

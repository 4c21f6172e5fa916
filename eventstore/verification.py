"""Verify the log's guarantees from the stored rows.

Nothing is trusted that a superuser could have undone: neither the unique keys, nor the triggers, nor that
they do what their names say, nor that an index has every row. The log is read once in the order of its
positions, row by row, and hashed here; what requires the whole log in order of stream or id is sorted by
Postgres, on disk if necessary. So memory grows neither with the log nor with the size of its events.
Everything is read in one snapshot, which the caller begins, while the squad goes on working.

This cannot detect that the log was truncated, or rewritten from some position on, hashes included. For
that, signed checkpoints are kept elsewhere and compared with it (`checkpoint`).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from eventstore import log
from eventstore.chain import HASHED_TEXT
from eventstore.guards import missing_guards, wrongly_computed
from eventstore.queries import one_row, one_value
from eventstore.recorded import GENESIS_HASH
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from eventstore.checkpoint import Checkpoint
    from eventstore.connection import Connection

REPORT_EVERY_EVENTS = 10_000
"""How often progress is reported."""

_WALK: LiteralString = (
    f"SELECT coalesce(position, 0)::bigint, coalesce(hash, '')::bytea, convert_to({HASHED_TEXT}, 'UTF8')"
    " FROM events ORDER BY position"
)

# Sort the table itself: an index may lack rows, or have them in a different order.
_SCAN_TABLE: LiteralString = (
    "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off;"
    " SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = on; SET LOCAL enable_sort = on;"
    " SET LOCAL work_mem = '64MB'"
)
_BY_POSITION: LiteralString = (
    "SELECT count(*), count(*) FILTER (WHERE position IS DISTINCT FROM place),"
    " count(*) FILTER (WHERE recorded_at < before), min(position) FILTER (WHERE recorded_at < before),"
    " count(*) FILTER (WHERE caused_by >= position), min(position) FILTER (WHERE caused_by >= position)"
    " FROM (SELECT position, recorded_at, caused_by, row_number() OVER along AS place,"
    " lag(recorded_at) OVER along AS before FROM events WINDOW along AS (ORDER BY position)) laid_out"
)
_BY_STREAM: LiteralString = (
    "SELECT position, stream, version, due, count(*) OVER () FROM (SELECT position, stream, version,"
    ' row_number() OVER (PARTITION BY stream COLLATE "C" ORDER BY position) AS due FROM events) laid_out'
    " WHERE version IS DISTINCT FROM due ORDER BY position LIMIT 1"
)
_BY_VALUE: LiteralString = (
    "SELECT position, value, earlier, count(*) OVER () FROM (SELECT position, {0}::text AS value,"
    " lag(position) OVER (PARTITION BY {0} ORDER BY position) AS earlier FROM events WHERE {0} IS NOT NULL)"
    " laid_out WHERE earlier IS NOT NULL ORDER BY position LIMIT 1"
)
_UNIQUE = {"id": "id", "idempotency_key": "idempotency key"}
# Not every role that may read the log may read the keys, and a schema that predates keys has none.
_SEES_KEYS: LiteralString = (
    "SELECT coalesce(has_table_privilege(to_regclass('subject_keys'), 'SELECT'), false)"
)
_NOT_FORGOTTEN: LiteralString = (
    "SELECT min(position), count(*) FROM events JOIN subject_keys k ON k.id::text = data ->> 'key_id'"
    " WHERE type = 'subject_forgotten'"
)
_FIRST_ID: LiteralString = "SELECT id::text FROM events WHERE position = 1"


class Check(NamedTuple):
    """The result of one check."""

    name: str
    holds: bool
    says: str
    """The finding in one line; if the check failed, the first fault."""
    position: int | None = None
    """The position of the first fault, if it has one."""
    faults: int = 0


@dataclass
class _Findings:
    """The faults of one check: the first in full, and how many there are."""

    name: str
    count: int = 0
    _first: tuple[int | None, str] = field(default=(None, ""), init=False)

    def add(self, position: int | None, says: str, faults: int = 1) -> None:
        """Add a fault, or so many of which this is the first."""
        if not self.count:
            self._first = position, says
        self.count += faults

    def check(self, holding: str) -> Check:
        """Return the result; `holding` is what it says if there are no faults."""
        if not self.count:
            return Check(self.name, holds=True, says=holding)
        position, says = self._first
        return Check(self.name, holds=False, says=says, position=position, faults=self.count)


class Verified(NamedTuple):
    """The result of a verification of the log."""

    checks: list[Check]
    position: int
    """The last position; 0 if the log is empty."""
    hash: bytes
    squad: str | None
    """The id of the first event, which identifies the squad."""

    @property
    def first_fault(self) -> Check | None:
        """The first check that failed, if any."""
        return next((check for check in self.checks if not check.holds), None)


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """Open a read-only transaction with one snapshot of the database."""
    with translating():
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        if not connection.broken:
            await connection.rollback()


async def verify_log(
    connection: Connection,
    checkpoints: Sequence[tuple[str, Checkpoint]] = (),
    report: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Check everything that the log guarantees, in the snapshot that the caller has begun.

    Args:
        connection: without timeouts.
        checkpoints: to compare with the log, each with its name.
        report: is called now and then with the number of events read.

    Raises:
        StoreUnavailable: the connection broke.
    """
    walk = _Walk({checkpoint.position for _, checkpoint in checkpoints})
    with translating():
        await walk.run(connection, report)
        # Rolled back, so that its settings end with it.
        async with connection.transaction(force_rollback=True):
            await connection.execute(_SCAN_TABLE)
            checks = [
                *await _by_position(connection, walk),
                await by_stream(connection),
                await _by_value(connection),
                await _guards(connection),
            ]
            if await one_value(connection, _SEES_KEYS):
                checks.append(await _forgotten(connection))
            squad = await one_value(connection, _FIRST_ID)
    checks += [_compare_checkpoint(walk, squad, name, checkpoint) for name, checkpoint in checkpoints]
    return Verified(checks, walk.position, walk.hash, squad)


class _Walk:
    """One pass over the log in the order of its positions, which checks the hashes."""

    def __init__(self, marks: set[int]) -> None:
        self.positions = _Findings("positions")
        self.chain = _Findings("chain")
        self.rows = 0
        self.position = 0
        self.hash = GENESIS_HASH
        self.marks = dict.fromkeys(marks, "")
        """The hashes at the positions of checkpoints."""

    async def run(self, connection: Connection, report: Callable[[int], None]) -> None:
        """Read every row."""
        marks, last, previous, rows = self.marks, self.position, self.hash, 0
        async with connection.cursor(binary=True) as cursor:
            async for position, hash_, text in cursor.stream(_WALK, size=log.CHUNK_EVENTS):
                if position != last + 1:
                    # The previous hash is unknown, so this link of the chain cannot be checked.
                    self._misplaced(position, last)
                elif sha256(previous + text).digest() != hash_:
                    self.chain.add(position, "its hash does not match its content and the previous hash")
                if position in marks:
                    marks[position] = hash_.hex()
                last, previous = max(position, last), hash_
                rows += 1
                if rows % REPORT_EVERY_EVENTS == 0:
                    report(rows)
        report(rows)
        self.position, self.hash, self.rows = last, previous, rows

    def _misplaced(self, position: int, last: int) -> None:
        if position < 1:
            self.positions.add(None, f"a row has the position {position or 'NULL'}")
        elif position <= last:
            self.positions.add(position, "occurs more than once")
        elif position == last + 2:
            self.positions.add(last + 1, "is missing")
        else:
            self.positions.add(last + 1, f"is missing, as are all up to {position - 1}")


async def _by_position(connection: Connection, walk: _Walk) -> list[Check]:
    rows, misplaced, times, first_time, causes, first_cause = await one_row(connection, _BY_POSITION)
    if rows != walk.rows or (misplaced and not walk.positions.count):
        walk.positions.add(None, f"the table has {rows:,} rows, but its index has {walk.rows:,}")
    in_time, caused = _Findings("times"), _Findings("causes")
    if times:
        in_time.add(first_time, "is recorded earlier than the previous event", times)
    if causes:
        caused.add(first_cause, "has a cause that does not precede it", causes)
    return [
        walk.positions.check(f"1 to {walk.position:,}, none is missing" if rows else "the log is empty"),
        walk.chain.check("every hash matches the event's content and the previous hash"),
        in_time.check("no event is recorded earlier than the previous one"),
        caused.check("every cause precedes its effect"),
    ]


async def by_stream(connection: Connection) -> Check:
    """Check that the versions of every stream start at 1 and have no gaps, in the order of the log."""
    found = _Findings("streams")
    if row := await _first_of(connection, _BY_STREAM):
        position, stream, version, due, faults = row
        found.add(position, f"is version {version} of {stream!r}, expected {due}", faults)
    return found.check("the versions of each start at 1, none is missing")


async def _by_value(connection: Connection) -> Check:
    found = _Findings("ids")
    for column, what in _UNIQUE.items():
        if row := await _first_of(connection, _BY_VALUE.format(column)):
            position, value, earlier, faults = row
            found.add(position, f"has the {what} {value!r}, as position {earlier} does", faults)
    return found.check("no id and no idempotency key occurs twice")


async def _guards(connection: Connection) -> Check:
    found = _Findings("guards")
    missing = await missing_guards(connection)
    for fault in missing:
        found.add(None, fault)
    if not missing:
        position, faults = await wrongly_computed(connection)
        if faults:
            found.add(position, "the column agent does not match the event's data", faults)
    return found.check("the triggers, functions and unique keys that protect the log are in place")


async def _forgotten(connection: Connection) -> Check:
    found = _Findings("forgotten")
    position, keys = await one_row(connection, _NOT_FORGOTTEN)
    if keys:
        found.add(position, "the key that was destroyed here exists again", keys)
    return found.check("no key of a forgotten subject exists")


def _compare_checkpoint(walk: _Walk, squad: str | None, name: str, checkpoint: Checkpoint) -> Check:
    position, seen = checkpoint.position, f"{name}, signed {checkpoint.signed_at},"
    if checkpoint.squad != squad:
        position = 1
        fault = f"{seen} has event {checkpoint.squad} here: the log was rewritten, or is another squad's"
    elif walk.position < position:
        fault = f"{seen} covers events up to {position}: the log was truncated"
        position = walk.position + 1
    elif walk.marks[position] != checkpoint.hash:
        fault = f"{seen} has a different hash here: the log was rewritten, from here or from earlier on"
    else:
        return Check(
            "checkpoint", holds=True, says=f"{seen} by {checkpoint.public_key} holds at {position:,}"
        )
    return Check("checkpoint", holds=False, says=fault, position=position, faults=1)


async def _first_of(connection: Connection, query: LiteralString) -> tuple[Any, ...] | None:
    return await (await connection.execute(query)).fetchone()

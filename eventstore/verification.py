"""Whether the log keeps its promises, found out from what lies there.

Nothing is believed that a superuser could have undone: neither the unique keys, nor the triggers, nor that
they do what they are called, nor that an index shows every row. The log is read once in the order of its
positions, row by row, and hashed here; Postgres sorts, on disk where it has to, what only shows when the
whole log is laid out by stream or by id. So memory grows neither with the log nor with the size of its
events. Everything is looked at in one snapshot, which the caller begins, and the squad goes on meanwhile.

What this cannot see is that the log's end was cut off, or that it was written anew from some position on,
hashes and all. For that, signed checkpoints are kept elsewhere and held against it (`checkpoint`).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from eventstore import log
from eventstore.asking import one_row, one_value
from eventstore.chain import HASHED_TEXT
from eventstore.guards import missing_guards, wrongly_computed
from eventstore.recorded import GENESIS_HASH
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from eventstore.checkpoint import Checkpoint
    from eventstore.connection import Connection

TELL_EVERY_EVENTS = 10_000
"""How often progress is told."""

_WALK: LiteralString = (
    f"SELECT coalesce(position, 0)::bigint, coalesce(hash, '')::bytea, convert_to({HASHED_TEXT}, 'UTF8')"
    " FROM events ORDER BY position"
)

# What is laid out is read from the table itself; an index may hide rows, or show them in another order.
_FROM_THE_TABLE: LiteralString = (
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
_UNREPEATED = {"id": "id", "idempotency_key": "idempotency key"}
# Not every role that may read the log may read the keys, and a schema from before there were keys has none.
_SEES_KEYS: LiteralString = (
    "SELECT coalesce(has_table_privilege(to_regclass('subject_keys'), 'SELECT'), false)"
)
_NOT_FORGOTTEN: LiteralString = (
    "SELECT min(position), count(*) FROM events JOIN subject_keys k ON k.id::text = data ->> 'key_id'"
    " WHERE type = 'subject_forgotten'"
)
_FIRST_ID: LiteralString = "SELECT id::text FROM events WHERE position = 1"


class Check(NamedTuple):
    """What became of one promise."""

    name: str
    holds: bool
    says: str
    """What was found, in one line; where the promise does not hold, the first fault."""
    position: int | None = None
    """Of the first fault, where it has one."""
    faults: int = 0


@dataclass
class _Findings:
    """The faults of one check: the first in full, the others as a number."""

    name: str
    count: int = 0
    _first: tuple[int | None, str] = field(default=(None, ""), init=False)

    def add(self, position: int | None, says: str, faults: int = 1) -> None:
        """Takes note of a fault, or of so many of which this is the first."""
        if not self.count:
            self._first = position, says
        self.count += faults

    def check(self, holding: str) -> Check:
        """The check's outcome; `holding` is what to say where nothing was found."""
        if not self.count:
            return Check(self.name, holds=True, says=holding)
        position, says = self._first
        return Check(self.name, holds=False, says=says, position=position, faults=self.count)


class Verified(NamedTuple):
    """What a verification of the log found."""

    checks: list[Check]
    position: int
    """The last one that is there; 0 where the log is empty."""
    hash: bytes
    squad: str | None
    """The id of the first event, which tells one squad from another."""

    @property
    def first_fault(self) -> Check | None:
        """The first check that does not hold."""
        return next((check for check in self.checks if not check.holds), None)


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """A transaction in which everything is seen as it is now, for as long as that takes."""
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
    tell: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Checks everything that the log promises, in the snapshot that the caller has begun.

    Args:
        connection: without limits of time.
        checkpoints: to be held against the log, each with the name that it goes by.
        tell: is told now and then how many events were read.

    Raises:
        StoreUnavailable: the connection broke.
    """
    walk = _Walk({checkpoint.position for _, checkpoint in checkpoints})
    with translating():
        await walk.along(connection, tell)
        # Rolled back, so that what is set in it ends with it.
        async with connection.transaction(force_rollback=True):
            await connection.execute(_FROM_THE_TABLE)
            checks = [
                *await _by_position(connection, walk),
                await by_stream(connection),
                await _by_value(connection),
                await _guards(connection),
            ]
            if await one_value(connection, _SEES_KEYS):
                checks.append(await _forgotten(connection))
            squad = await one_value(connection, _FIRST_ID)
    checks += [_held_against(walk, squad, name, checkpoint) for name, checkpoint in checkpoints]
    return Verified(checks, walk.position, walk.hash, squad)


class _Walk:
    """Once through the log in the order of its positions, hashing."""

    def __init__(self, marks: set[int]) -> None:
        self.positions = _Findings("positions")
        self.chain = _Findings("chain")
        self.rows = 0
        self.position = 0
        self.hash = GENESIS_HASH
        self.marks = dict.fromkeys(marks, "")
        """The hashes at the positions that somebody wants to know them of."""

    async def along(self, connection: Connection, tell: Callable[[int], None]) -> None:
        """Reads every row."""
        marks, last, previous, rows = self.marks, self.position, self.hash, 0
        async with connection.cursor(binary=True) as cursor:
            async for position, hash_, text in cursor.stream(_WALK, size=log.CHUNK_EVENTS):
                if position != last + 1:
                    # The hash before is unknown, so there is nothing to be said about the chain.
                    self._misplaced(position, last)
                elif sha256(previous + text).digest() != hash_:
                    self.chain.add(
                        position, "its hash does not follow from what it says and the hash before"
                    )
                if position in marks:
                    marks[position] = hash_.hex()
                last, previous = max(position, last), hash_
                rows += 1
                if rows % TELL_EVERY_EVENTS == 0:
                    tell(rows)
        tell(rows)
        self.position, self.hash, self.rows = last, previous, rows

    def _misplaced(self, position: int, last: int) -> None:
        if position < 1:
            self.positions.add(None, f"a row has the position {position or 'NULL'}")
        elif position <= last:
            self.positions.add(position, "is there more than once")
        elif position == last + 2:
            self.positions.add(last + 1, "is missing")
        else:
            self.positions.add(last + 1, f"is missing, and so are all up to {position - 1}")


async def _by_position(connection: Connection, walk: _Walk) -> list[Check]:
    rows, misplaced, times, first_time, causes, first_cause = await one_row(connection, _BY_POSITION)
    if rows != walk.rows or (misplaced and not walk.positions.count):
        walk.positions.add(None, f"the table has {rows:,} rows, and its index shows {walk.rows:,}")
    in_time, caused = _Findings("times"), _Findings("causes")
    if times:
        in_time.add(first_time, "is recorded earlier than the one before", times)
    if causes:
        caused.add(first_cause, "is caused by an event that is not before it", causes)
    return [
        walk.positions.check(f"1 to {walk.position:,}, none is missing" if rows else "the log is empty"),
        walk.chain.check("every hash follows from what the event says and the hash before"),
        in_time.check("no event is recorded earlier than the one before"),
        caused.check("every cause comes before its effect"),
    ]


async def by_stream(connection: Connection) -> Check:
    """Whether every stream has its versions from 1 on without a gap, in the order of the log."""
    found = _Findings("streams")
    if row := await _first_of(connection, _BY_STREAM):
        position, stream, version, due, faults = row
        found.add(position, f"is version {version} of {stream!r}, where {due} is due", faults)
    return found.check("each has its versions from 1 on, none is missing")


async def _by_value(connection: Connection) -> Check:
    found = _Findings("ids")
    for column, what in _UNREPEATED.items():
        if row := await _first_of(connection, _BY_VALUE.format(column)):
            position, value, earlier, faults = row
            found.add(position, f"has the {what} {value!r}, which is that of position {earlier}", faults)
    return found.check("no id and no idempotency key is there twice")


async def _guards(connection: Connection) -> Check:
    found = _Findings("guards")
    missing = await missing_guards(connection)
    for fault in missing:
        found.add(None, fault)
    if not missing:
        position, faults = await wrongly_computed(connection)
        if faults:
            found.add(position, "the column agent is not what the event says", faults)
    return found.check("the triggers, functions and unique keys that keep the log as it is are in place")


async def _forgotten(connection: Connection) -> Check:
    found = _Findings("forgotten")
    position, keys = await one_row(connection, _NOT_FORGOTTEN)
    if keys:
        found.add(position, "the key that was destroyed here is there again", keys)
    return found.check("no key of anybody who was forgotten is there")


def _held_against(walk: _Walk, squad: str | None, name: str, checkpoint: Checkpoint) -> Check:
    position, seen = checkpoint.position, f"{name}, signed {checkpoint.signed_at},"
    if checkpoint.squad != squad:
        position = 1
        fault = (
            f"{seen} knows event {checkpoint.squad} here: the log was written anew, or is another squad's"
        )
    elif walk.position < position:
        fault = f"{seen} knows events up to {position}: the log's end was cut off"
        position = walk.position + 1
    elif walk.marks[position] != checkpoint.hash:
        fault = f"{seen} knows another hash here: the log was written anew, from here or from before"
    else:
        return Check(
            "checkpoint", holds=True, says=f"{seen} by {checkpoint.public_key} holds at {position:,}"
        )
    return Check("checkpoint", holds=False, says=fault, position=position, faults=1)


async def _first_of(connection: Connection, query: LiteralString) -> tuple[Any, ...] | None:
    return await (await connection.execute(query)).fetchone()

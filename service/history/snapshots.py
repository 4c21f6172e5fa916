"""Snapshots: the decision state stored at some positions, so that looking back need not fold from zero.

A snapshot is trusted only if all of this holds; otherwise it is ignored:

- it was folded by exactly the code that reads it (`FOLD`), not by an earlier or later version;
- its bytes are intact: they are preceded by a SHA-256 over them, the fold and the position;
- it belongs to this log: it names the hash of the log's event at its position. By the chain, that hash
  covers every event up to there.

Rows, and the versions of their streams, are stored by column, a few hundred rows at a time, as compressed
lines of JSON. Who holds what is derived from the rows. Snapshots are dispensable: they may be deleted at
any time, and are when somebody is forgotten (schema.sql), as they may hold personal data in plain text.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from datetime import date, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, LiteralString

import orjson
from msgspec.structs import astuple
from psycopg import AsyncClientCursor

from eventstore.connection import closing_after
from eventstore.queries import one_value
from eventstore.recorded import Head
from eventstore.translation import translating
from projections.operations import OPERATIONS
from service.history.fingerprint import fold_fingerprint
from service.memory.residence import RESIDENT
from service.memory.squad import Squad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from eventstore.connection import Connection
    from projections.projection import Table

FOLD = fold_fingerprint()
"""Fingerprint of this process's folding code, taken at startup, before anything on disk can be replaced."""

INTERVAL_EVENTS = 5_000
"""Minimum number of events between two snapshots; folding them takes 0.2 seconds."""

SLICE_ROWS = 200
"""How many rows are serialized before yielding to other tasks."""

_STUCK_AFTER_SECONDS = 30.0
_DIGEST_BYTES = 32
_COMPRESSION_LEVEL = 1
_COMPRESSED_AT_ONCE_BYTES = 1 << 20

_NEAREST = """
    SELECT s.position, e.hash, e.recorded_at, s.state
    FROM snapshots s JOIN events e ON e.position = s.position
    WHERE s.fold = %s AND s.position <= %s ORDER BY s.position DESC LIMIT 1
"""
_LOAD = """
    SELECT s.position, e.hash, e.recorded_at, s.state
    FROM snapshots s LEFT JOIN events e ON e.position = s.position
    WHERE s.fold = %s AND s.position = %s
"""
_POSITIONS = "SELECT position FROM snapshots WHERE fold = %s ORDER BY position"
_STORE = """
    INSERT INTO snapshots (fold, position, state) VALUES (%s, %s, %b)
    ON CONFLICT (fold, position) DO UPDATE SET state = excluded.state, taken_at = clock_timestamp()
"""
# Somebody forgotten while a snapshot is being stored would remain in it: the trigger that deletes snapshots
# cannot see one that is not committed yet. So the last check is made under the log's lock, in one message.
_CHECK_AND_COMMIT = """
    SELECT lock_log();
    DELETE FROM snapshots WHERE fold = %(fold)s AND position = %(position)s AND EXISTS (
        SELECT FROM events WHERE type = 'subject_forgotten' AND position > %(known)s);
    COMMIT
"""
_PRUNE = "DELETE FROM snapshots WHERE fold <> %s AND taken_at < clock_timestamp() - interval '1 day'"
_MAY_STORE = """
    SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'
           AND bool_and(has_table_privilege('snapshots', needed))
    FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) needed
"""
_READERS: dict[str, Callable[[str], Any]] = {
    "timestamptz": datetime.fromisoformat,
    "date": date.fromisoformat,
}
"""Parsers for the column types that JSON has no values for."""

_log = logging.getLogger(__name__)


class InvalidSnapshot(Exception):
    """A snapshot that was altered, or belongs to another log."""


def distance(squad: Squad) -> int:
    """Return how many events after a snapshot of this squad the next one is due.

    Together, snapshots never hold more rows than the log has events, so they stay a fraction of its size.
    """
    return max(INTERVAL_EVENTS, sum(map(len, squad.tables.values())))


# Storage ------------------------------------------------------------------------------------------------


async def nearest(connection: Connection, position: int) -> Squad | None:
    """Return the squad of the last trusted snapshot at or before a position; None if there is none.

    Raises:
        StoreUnavailable: the connection broke.
    """
    while found := await _fetch(connection, _NEAREST, position):
        head, state = found
        try:
            return await unpack(state, head)
        except InvalidSnapshot as reason:
            _log.warning("the snapshot at position %d is not used: %s", head.position, reason)
            position = head.position - 1
    return None


async def load(connection: Connection, position: int) -> Squad | None:
    """Return the squad of the snapshot at exactly this position; None if there is none.

    Raises:
        InvalidSnapshot: it was altered, or belongs to another log.
        StoreUnavailable: the connection broke.
    """
    found = await _fetch(connection, _LOAD, position)
    return await unpack(found[1], found[0]) if found else None


async def _fetch(connection: Connection, query: LiteralString, position: int) -> tuple[Head, bytes] | None:
    with closing_after(_STUCK_AFTER_SECONDS, connection), translating():
        cursor = await connection.execute(query, (FOLD, position), binary=True)
        row = await cursor.fetchone()
    return (Head(*row[:3]), row[3]) if row else None


async def positions(connection: Connection) -> list[int]:
    """Return the positions of this fold's snapshots."""
    with translating():
        cursor = await connection.execute(_POSITIONS, (FOLD,))
        return [position for (position,) in await cursor.fetchall()]


async def may_store(connection: Connection) -> bool:
    """Return whether this session may store snapshots: not on a replica, nor with a read-only role."""
    return bool(await one_value(connection, _MAY_STORE))


async def store(connection: Connection, squad: Squad, known: int) -> None:
    """Store a squad, unless somebody was forgotten since it was read. Nobody may change it meanwhile.

    Args:
        connection: in autocommit mode.
        squad: with everything open in memory.
        known: the log's head before any of the squad was read.

    Raises:
        StoreUnavailable, StoreBusy, StoreRefused: it was not stored.
    """
    assert not squad.absent
    position, state = squad.head.position, await pack(squad)
    named = {"fold": FOLD, "position": position, "known": known}
    with closing_after(_STUCK_AFTER_SECONDS, connection), translating():
        try:
            await connection.execute("BEGIN")
            await connection.execute(_STORE, (FOLD, position, state))
            await AsyncClientCursor(connection).execute(_CHECK_AND_COMMIT, named)
        except Exception:
            await connection.rollback()
            raise


async def prune(connection: Connection) -> None:
    """Delete the snapshots of other code, except recent ones: its processes may still be running."""
    with translating():
        await connection.execute(_PRUNE, (FOLD,))


# Format -------------------------------------------------------------------------------------------------


async def pack(squad: Squad) -> bytes:
    """Serialize a squad, yielding to other tasks in between: a large one takes tenths of a second."""
    compressor = zlib.compressobj(_COMPRESSION_LEVEL)
    packed: list[bytes] = []
    lines: list[bytes] = []
    size = 0
    for line in _lines(squad):
        lines.append(line)
        size += len(line)
        if size >= _COMPRESSED_AT_ONCE_BYTES:
            packed.append(await asyncio.to_thread(compressor.compress, b"".join(lines)))
            lines.clear()
            size = 0
        else:
            await asyncio.sleep(0)
    packed.append(await asyncio.to_thread(compressor.compress, b"".join(lines)))
    packed.append(compressor.flush())
    content = b"".join(packed)
    return await asyncio.to_thread(_digest, squad.head.position, content) + content


async def unpack(state: bytes, head: Head) -> Squad:
    """Deserialize the squad of a snapshot at this head of this log.

    Raises:
        InvalidSnapshot: the bytes were altered, or belong to another position or log.
    """
    lines = await asyncio.to_thread(_unpacked, state, head.position)
    try:
        first = orjson.loads(next(lines))
        if Head(first[0], bytes.fromhex(first[1]), datetime.fromisoformat(first[2])) != head:
            raise InvalidSnapshot("it belongs to another log")
        squad = Squad()
        squad.head = head
        for line in lines:
            name, columns, versions = orjson.loads(line)
            rows = _rows(RESIDENT[name].table, columns)
            squad.load(RESIDENT[name].table, rows)
            stream = RESIDENT[name].stream
            squad.versions.update(
                (found, version)
                for row, version in zip(rows, versions, strict=True)
                if (found := stream(row)) is not None
            )
            await asyncio.sleep(0)
    except (LookupError, TypeError, ValueError, StopIteration) as error:
        raise InvalidSnapshot(f"it cannot be read: {error!r}") from error
    return squad


def _lines(squad: Squad) -> Iterator[bytes]:
    head = squad.head
    yield orjson.dumps([head.position, head.hash.hex(), head.recorded_at], option=orjson.OPT_APPEND_NEWLINE)
    for name, residence in RESIDENT.items():
        rows = list(squad.tables[name].values())
        if residence.table is OPERATIONS:
            rows.sort(key=lambda row: row.fencing_token)
        for start in range(0, len(rows), SLICE_ROWS):
            some = rows[start : start + SLICE_ROWS]
            versions = [squad.versions.get(residence.stream(row) or "") for row in some]
            columns = list(zip(*map(astuple, some), strict=True))
            yield orjson.dumps([name, columns, versions], option=orjson.OPT_APPEND_NEWLINE)


def _rows(table: Table[Any, Any], columns: Sequence[Sequence[Any]]) -> list[Any]:
    read = [
        [None if value is None else reader(value) for value in column]
        if (reader := _READERS.get(kind))
        else column
        for kind, column in zip(table.types, columns, strict=True)
    ]
    return [table.row(*values) for values in zip(*read, strict=True)]


def _digest(position: int, content: bytes) -> bytes:
    return sha256(f"{FOLD}\n{position}\n".encode() + content).digest()


def _unpacked(state: bytes, position: int) -> Iterator[bytes]:
    digest, content = state[:_DIGEST_BYTES], state[_DIGEST_BYTES:]
    if digest != _digest(position, content):
        raise InvalidSnapshot("its bytes were altered")
    return iter(zlib.decompress(content).splitlines())

"""Snapshots: the decision state put away at some positions, so that looking back need not fold from zero.

A snapshot is trusted only where all of this holds; otherwise it is as if it were not there:

- it was folded by the very code that reads it (`FOLD`), not by an earlier or later one;
- its bytes are what they were: a SHA-256 over them, the fold and the position goes before them;
- it belongs to this log: the hash that it names is that of the log's event at its position. By the chain,
  that hash stands for every event up to there.

Rows, and the versions of their streams, are stored by column, a few hundred rows at a time, as lines of
JSON, compressed. Who holds what follows from the rows. Nothing of it is needed: snapshots may vanish at any
time, and do so where somebody is forgotten (schema.sql), as they may hold what was said in clear.
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

from eventstore.asking import one_value
from eventstore.connection import hanging_up_after
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
"""The code that folds here. Taken while this process starts, before anything on disk can be replaced."""

EVENTS_BETWEEN = 5_000
"""How many events lie between two snapshots, at least: what is folded in two tenths of a second."""

ROWS_AT_ONCE = 200
"""How many rows are made text of before others have their turn."""

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
# Whoever is forgotten while a snapshot is on its way would stay in it: the trigger that deletes snapshots
# cannot see one that is not committed. So the last look is taken under the log's lock, in one message.
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
"""What makes a value of its text, for the types of column that JSON has no values of."""

_log = logging.getLogger(__name__)


class Distrusted(Exception):
    """A snapshot that is not what was put away, or not of this log."""


def distance(squad: Squad) -> int:
    """How many events after a snapshot of this squad the next one is due.

    They never store more rows than there are events, so all of them together stay a fraction of the log.
    """
    return max(EVENTS_BETWEEN, sum(map(len, squad.tables.values())))


# Where they lie -----------------------------------------------------------------------------------------


async def nearest(connection: Connection, position: int) -> Squad | None:
    """The squad of the last snapshot at or before a position that can be trusted; None where there is none.

    Raises:
        StoreUnavailable: the connection broke.
    """
    while found := await _fetch(connection, _NEAREST, position):
        head, state = found
        try:
            return await unpack(state, head)
        except Distrusted as reason:
            _log.warning("the snapshot at position %d is not used: %s", head.position, reason)
            position = head.position - 1
    return None


async def load(connection: Connection, position: int) -> Squad | None:
    """The squad of the snapshot at just this position; None where there is none.

    Raises:
        Distrusted: it is not what was put away, or not of this log.
        StoreUnavailable: the connection broke.
    """
    found = await _fetch(connection, _LOAD, position)
    return await unpack(found[1], found[0]) if found else None


async def _fetch(connection: Connection, query: LiteralString, position: int) -> tuple[Head, bytes] | None:
    with hanging_up_after(_STUCK_AFTER_SECONDS, connection), translating():
        cursor = await connection.execute(query, (FOLD, position), binary=True)
        row = await cursor.fetchone()
    return (Head(*row[:3]), row[3]) if row else None


async def positions(connection: Connection) -> list[int]:
    """Where there are snapshots of this fold."""
    with translating():
        cursor = await connection.execute(_POSITIONS, (FOLD,))
        return [position for (position,) in await cursor.fetchall()]


async def may_store(connection: Connection) -> bool:
    """Whether this session may put snapshots away: not on a replica, nor as somebody who may only read."""
    return bool(await one_value(connection, _MAY_STORE))


async def store(connection: Connection, squad: Squad, known: int) -> None:
    """Puts a squad away that nobody changes meanwhile; not where somebody was forgotten in between.

    Args:
        connection: in autocommit mode.
        squad: with all that is open in memory.
        known: where the log ended before the first of the squad was read.

    Raises:
        StoreUnavailable, StoreBusy, StoreRefused: it was not stored.
    """
    assert not squad.absent
    position, state = squad.head.position, await pack(squad)
    named = {"fold": FOLD, "position": position, "known": known}
    with hanging_up_after(_STUCK_AFTER_SECONDS, connection), translating():
        try:
            await connection.execute("BEGIN")
            await connection.execute(_STORE, (FOLD, position, state))
            await AsyncClientCursor(connection).execute(_CHECK_AND_COMMIT, named)
        except Exception:
            await connection.rollback()
            raise


async def prune(connection: Connection) -> None:
    """Deletes the snapshots of other code, but for recent ones: its processes may still be there."""
    with translating():
        await connection.execute(_PRUNE, (FOLD,))


# What they look like ------------------------------------------------------------------------------------


async def pack(squad: Squad) -> bytes:
    """A squad as bytes. Others have their turn in between: a large one takes tenths of a second."""
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
    """The squad that these bytes tell, at this place of this log.

    Raises:
        Distrusted: they were changed, or are of another place or log.
    """
    lines = await asyncio.to_thread(_unpacked, state, head.position)
    try:
        told = orjson.loads(next(lines))
        if Head(told[0], bytes.fromhex(told[1]), datetime.fromisoformat(told[2])) != head:
            raise Distrusted("it belongs to another log")
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
        raise Distrusted(f"it cannot be read: {error!r}") from error
    return squad


def _lines(squad: Squad) -> Iterator[bytes]:
    head = squad.head
    yield orjson.dumps([head.position, head.hash.hex(), head.recorded_at], option=orjson.OPT_APPEND_NEWLINE)
    for name, residence in RESIDENT.items():
        rows = list(squad.tables[name].values())
        if residence.table is OPERATIONS:
            rows.sort(key=lambda row: row.fencing_token)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
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
        raise Distrusted("its bytes are not what they were")
    return iter(zlib.decompress(content).splitlines())

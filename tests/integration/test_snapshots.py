"""Snapshots in the database: stored whole or not at all, and used only if they can be trusted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

from eventstore import log, schema
from eventstore.errors import EventStoreError, StoreRefused
from service.history import snapshots
from service.history.folding import fold_to, snapshot_writer
from service.history.time_travel import state_at
from service.memory.squad import Squad
from tests.support.components import SCHEMA, backend_pids, connected, lock_is_free, running_writer
from tests.support.log import LogWriter, message_sent
from tests.support.random_history import RandomHistory
from tests.support.squads import contents
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection

STATE_BYTE = (
    "UPDATE snapshots SET state = set_byte(state, {0}, 255 - get_byte(state, {0})) WHERE position = %s"
)


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    """A connection to a squad with some history."""
    async with running_writer(database) as writer:
        await RandomHistory(seed=31).submit_commands(writer, 100, at_once=20)
    async with connected(database) as opened:
        yield opened


async def _store(connection: Connection, *positions: int) -> None:
    for position in positions:
        await snapshots.store(connection, await state_at(connection, position), position)


async def _nearest_position(connection: Connection, position: int) -> int | None:
    """The position of the snapshot that is used for a position; checks its contents."""
    squad = await snapshots.nearest(connection, position)
    if squad is None:
        return None
    folded = Squad()
    await fold_to(connection, folded, squad.head.position, squad.head.position)
    assert contents(squad) == contents(folded)
    return squad.head.position


async def test_nearest_snapshot_at_or_before_a_position_is_used(connection: Connection) -> None:
    assert await _nearest_position(connection, 100) is None
    await _store(connection, 20, 50, 90)
    assert await snapshots.positions(connection) == [20, 50, 90]
    for position, nearest in ((19, None), (20, 20), (49, 20), (50, 50), (89, 50), (2**62, 90)):
        assert await _nearest_position(connection, position) == nearest


@pytest.mark.parametrize("place", [0, 31, 32, 60])
async def test_corrupted_snapshot_is_ignored_and_replaced(
    connection: Connection, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    await _store(connection, 20, 50)
    await connection.execute(STATE_BYTE.format(place).encode(), (50,))
    assert await _nearest_position(connection, 60) == 20
    assert "the snapshot at position 50 is not used" in caplog.text
    await _store(connection, 50)
    assert await _nearest_position(connection, 60) == 50


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE snapshots SET position = 51 WHERE position = 50",
        "UPDATE snapshots SET fold = 'other code' WHERE position = 50",
        "UPDATE snapshots s SET state = o.state FROM snapshots o WHERE s.position = 50 AND o.position = 20",
        "UPDATE snapshots SET state = '' WHERE position = 50",
        "UPDATE snapshots SET position = 1000000 WHERE position = 50",
        "DELETE FROM snapshots WHERE position = 50",
    ],
)
async def test_snapshot_whose_row_was_changed_is_ignored(connection: Connection, change: str) -> None:
    await _store(connection, 20, 50)
    await connection.execute(change.encode())
    assert await _nearest_position(connection, 60) == 20


async def test_snapshots_of_other_code_are_ignored_and_pruned_after_some_time(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _store(connection, 20)
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "FOLD", "later code")
        assert await _nearest_position(connection, 60) is None
        await _store(connection, 50)
        # Processes with the other code may still be running.
        await snapshots.prune(connection)
    assert await _nearest_position(connection, 60) == 20
    await connection.execute("UPDATE snapshots SET taken_at = taken_at - interval '2 days'")
    await snapshots.prune(connection)
    assert await _folds(connection) == {snapshots.FOLD}
    assert await _nearest_position(connection, 60) == 20


async def test_snapshots_of_another_log_are_ignored(database: str, empty_database: str) -> None:
    await schema.apply(empty_database, SCHEMA)
    for dsn in (database, empty_database):
        async with running_writer(dsn) as writer:
            await RandomHistory(seed=31).submit_commands(writer, 30)
    async with connected(database) as one, connected(empty_database) as other:
        await _store(one, 20)
        row = await (await one.execute("SELECT fold, position, state FROM snapshots")).fetchone()
        await other.execute("INSERT INTO snapshots (fold, position, state) VALUES (%s, %s, %s)", row)
        assert await snapshots.positions(other) == [20]
        assert await _nearest_position(other, 30) is None


async def test_failed_store_leaves_the_session_usable(connection: Connection) -> None:
    await connection.execute("ALTER TABLE snapshots ADD CHECK (position <> 20)")
    with pytest.raises(StoreRefused):
        await _store(connection, 20)
    store = await snapshot_writer(connection)
    assert store
    # Storing snapshots along the way, which only saves later work, does not fail.
    await store(await state_at(connection, 20), 20)
    await _store(connection, 21)
    assert await snapshots.positions(connection) == [21]


async def test_snapshot_is_not_stored_when_the_check_for_forgotten_subjects_fails(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_CHECK_AND_COMMIT", "SELECT 1 / 0")
    with pytest.raises((EventStoreError, psycopg.Error)):
        await _store(connection, 20)
    assert await snapshots.positions(connection) == []


async def test_read_only_role_stores_no_snapshots(connection: Connection, database: str) -> None:
    role = f"reader_{uuid4().hex}"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
        await admin.execute(f"CREATE ROLE {role}".encode())
        await admin.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}".encode())
        await admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO {role}".encode())
        try:
            await connection.execute(f"SET ROLE {role}".encode())
            assert not await snapshots.may_store(connection)
            assert (await state_at(connection, 50, await snapshot_writer(connection))).head.position == 50
            await connection.execute("RESET ROLE")
            assert await snapshots.may_store(connection)
        finally:
            await admin.execute(f"DROP OWNED BY {role}".encode())
            await admin.execute(f"DROP ROLE {role}".encode())


# Forgetting ---------------------------------------------------------------------------------------------


async def _forget(connection: Connection) -> None:
    log_writer = LogWriter(connection)
    await log_writer.catch_up()
    key = f'{{"key_id":"{uuid4()}"}}'
    await log_writer.append(message_sent("x"), type="subject_forgotten", data=key)


async def test_snapshot_is_not_stored_when_a_subject_was_forgotten_meanwhile(
    connection: Connection,
) -> None:
    known = await log.head_position(connection)
    one, other = await state_at(connection, 20), await state_at(connection, known)
    await _forget(connection)
    await snapshots.store(connection, one, known)
    await snapshots.store(connection, other, known)
    assert await snapshots.positions(connection) == []
    # A state read from now on contains nothing of the subject.
    await snapshots.store(connection, one, await log.head_position(connection))
    assert await snapshots.positions(connection) == [20]


async def test_snapshot_being_stored_while_a_subject_is_forgotten_is_discarded(
    connection: Connection, database: str
) -> None:
    squad = await state_at(connection, 20)
    async with connected(database) as other:
        await other.execute("BEGIN")
        await _forget(other)
        storing = asyncio.create_task(snapshots.store(connection, squad, 20))
        await eventually(lambda: _lock_is_awaited(other), describe="the store waits for the log's lock")
        assert not storing.done()
        await other.execute("COMMIT")
        await storing
    assert await snapshots.positions(connection) == []


async def test_snapshot_is_stored_whole_or_not_at_all_when_its_process_dies(
    connection: Connection, database: str
) -> None:
    squad = await state_at(connection, 20)
    async with connected(database) as other:
        await other.execute("BEGIN")
        await log.lock(other)
        async with connected(database) as dying:
            storing = asyncio.create_task(snapshots.store(dying, squad, 20))
            await eventually(lambda: _lock_is_awaited(other))
            storing.cancel()
            dying.pgconn.finish()
            with pytest.raises((asyncio.CancelledError, psycopg.OperationalError)):
                await storing
        await other.execute("ROLLBACK")

    async def is_disconnected() -> bool:
        return len(await backend_pids(connection, "squad test")) == 1

    await eventually(is_disconnected)
    assert await lock_is_free(connection)
    # The server may have received the whole message.
    assert await _nearest_position(connection, 20) in (None, 20)


async def _folds(connection: Connection) -> set[str]:
    cursor = await connection.execute("SELECT fold FROM snapshots")
    return {fold for (fold,) in await cursor.fetchall()}


async def _lock_is_awaited(connection: Connection) -> bool:
    cursor = await connection.execute(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
    )
    row = await cursor.fetchone()
    return bool(row and row[0])

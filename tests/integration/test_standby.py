"""A commit is not relied on before a synchronous standby has confirmed it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from eventstore import log, schema, standby
from eventstore.connection import connect, pool
from eventstore.errors import StoreBusy, StoreUnavailable
from tests.support.components import connected, message, running_writer, submit
from tests.support.log import LogWriter, agent_registered, message_sent, message_texts, whole_log
from tests.support.servers import Server, new_folder
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.writing.writer import Writer

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
WRITE = "SELECT pg_logical_emit_message(true, 'test', 'written'::text)"
CANCEL = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
ATTEMPTS = 8


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server of the test's own with an empty squad, because its settings would block other tests."""
    with new_folder() as folder:
        started = Server(folder / "alone")
        await started.start()
        await schema.apply(started.dsn, "squad")
        yield started


async def require_missing_standby(server: Server) -> None:
    """Make every commit wait, for a standby that does not exist."""
    await server.configure("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    # The server applies the setting with a delay: the first commit that waits shows that it has.
    while True:
        probe = asyncio.ensure_future(server.query(WRITE))
        await eventually(partial(_waits_or_is_done, server, probe))
        if not probe.done():
            await server.query(CANCEL)
            await probe
            return


async def _waits_or_is_done(server: Server, probe: asyncio.Future[object]) -> bool:
    return probe.done() or await server.query(WAITING) > 0


async def require_no_standby(server: Server) -> None:
    """Let commits no longer wait."""
    await server.configure("ALTER SYSTEM RESET synchronous_standby_names")


async def test_confirm_writes_nothing_and_needs_no_privilege_when_no_standby_is_required(
    database: str,
) -> None:
    """As a role that has only the privileges that a service needs."""
    async with connected(database) as connection:
        role = sql.Identifier("squad_confirming")
        try:
            await connection.execute(sql.SQL("CREATE ROLE {}").format(role))
            await connection.execute(sql.SQL("GRANT USAGE ON SCHEMA squad TO {}").format(role))
            await connection.execute(sql.SQL("SET ROLE {}").format(role))
            await standby.confirm(connection)
            cursor = await connection.execute("SELECT pg_current_xact_id_if_assigned()")
            assert await cursor.fetchone() == (None,)
            # What it does when a standby is required, which must need no special privilege on any version.
            await connection.execute("SELECT pg_logical_emit_message(true, 'squad', 'seen'::text)")
        finally:
            await connection.execute("RESET ROLE")
            await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            await connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_confirm_waits_for_the_standby_and_only_one_at_a_time(server: Server) -> None:
    await require_missing_standby(server)
    async with (
        connected(server.dsn) as one,
        await connect(server.dsn, "squad", name="squad test", lock_timeout=100) as other,
    ):
        confirming = asyncio.ensure_future(standby.confirm(one))
        await eventually(lambda: server.query(WAITING))
        with pytest.raises(StoreBusy):
            await standby.confirm(other)
        assert not confirming.done()
        await require_no_standby(server)
        await confirming
        await standby.confirm(other)


async def test_commit_whose_wait_was_cancelled_is_not_confirmed(server: Server) -> None:
    await require_missing_standby(server)
    async with connected(server.dsn) as connection:
        appending = asyncio.ensure_future(
            LogWriter(connection).append(message_sent("on this server alone"))
        )
        await eventually(lambda: server.query(WAITING))
        assert await server.query(CANCEL) == 1
        with pytest.raises(StoreUnavailable, match="no standby has confirmed"):
            await appending
        # On the server itself, the event is committed and visible.
        assert message_texts(await whole_log(connection)) == ["on this server alone"]


async def test_answer_found_in_the_log_is_not_given_before_the_standby_confirms_it(
    server: Server,
) -> None:
    """Another process appended it, but the wait for its confirmation was cancelled."""
    async with running_writer(server.dsn) as one, running_writer(server.dsn) as other:
        await submit(other, message("hello"))
        await require_missing_standby(server)
        first = asyncio.ensure_future(submit(one, message("once"), key="k", timeout_seconds=60))
        await eventually(lambda: server.query(WAITING))
        assert await server.query(CANCEL) == 1
        await eventually(lambda: _has_read(other, server))
        again = asyncio.ensure_future(submit(other, message("once"), key="k", timeout_seconds=60))
        await eventually(lambda: server.query(WAITING))
        await asyncio.wait([first, again], timeout=0.5)
        assert not first.done()
        assert not again.done()
        await require_no_standby(server)
        repeated = (await again).repeated
        assert repeated is not None
        assert repeated.body["position"] == (await first).position
    async with connected(server.dsn) as connection:
        assert message_texts(await whole_log(connection)) == ["hello", "once"]


async def test_retries_of_a_stuck_writer_leave_only_one_backend_waiting(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.writing.confirmed.STUCK_AFTER_SECONDS", 0.5)
    monkeypatch.setattr("service.writing.appender.STUCK_AFTER_SECONDS", 0.5)
    monkeypatch.setattr("service.writing.head_keeper.STUCK_AFTER_SECONDS", 0.5)
    monkeypatch.setattr("service.writing.writer._BACKOFF_SECONDS", (0.05, 0.05))
    async with running_writer(server.dsn) as writer:
        await require_missing_standby(server)
        attempts = 0
        original = writer._appender.begin

        async def count_attempts(connection: object) -> object:
            nonlocal attempts
            attempts += 1
            return await original(connection)  # type: ignore[arg-type]

        monkeypatch.setattr(writer._appender, "begin", count_attempts)
        waiting = asyncio.ensure_future(submit(writer, message("patient"), timeout_seconds=60))
        await eventually(lambda: attempts >= ATTEMPTS, within_seconds=20)
        assert not waiting.done()
        await eventually(lambda: writer.problem and "confirm" in writer.problem)
        assert await server.query(WAITING) == 1
        await require_no_standby(server)
        await waiting
    async with connected(server.dsn) as connection:
        assert message_texts(await whole_log(connection)) == ["patient"]


async def test_readers_are_read_only_and_still_find_the_server_that_accepts_writes(database: str) -> None:
    dsn = make_conninfo(database, target_session_attrs="read-write")
    async with (
        pool(dsn, "squad", name="squad reader", size=1) as readers,
        readers.connection() as connection,
    ):
        await log.head_position(connection)
        with pytest.raises(StoreUnavailable, match="read-only"):
            await LogWriter(connection).append(agent_registered("ada"))


async def _has_read(writer: Writer, server: Server) -> bool:
    """Whether a writer has read up to the head of the log."""
    async with connected(server.dsn) as connection:
        return writer.squad.head.position == await log.head_position(connection)

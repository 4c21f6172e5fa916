"""What a server has committed alone is not believed before a standby has it as well."""

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
from tests.support.log import LogWriter, joined, said, texts, whole_log
from tests.support.parts import connected, message, running_writer, submit
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
    """A server of the test's own, with an empty squad: what it is set to would hold up all others."""
    with new_folder() as folder:
        started = Server(folder / "alone")
        await started.start()
        await schema.apply(started.dsn, "squad")
        yield started


async def miss_a_standby(server: Server) -> None:
    """Every commit waits from now on."""
    await server.set("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    # The server takes it up by and by: the first that waits tells.
    while True:
        probe = asyncio.ensure_future(server.ask(WRITE))
        await eventually(partial(_waits_or_is_done, server, probe))
        if not probe.done():
            await server.ask(CANCEL)
            await probe
            return


async def _waits_or_is_done(server: Server, probe: asyncio.Future[object]) -> bool:
    return probe.done() or await server.ask(WAITING) > 0


async def wait_for_nobody(server: Server) -> None:
    """No commit waits any more."""
    await server.set("ALTER SYSTEM RESET synchronous_standby_names")


async def test_where_no_standby_is_waited_for_anybody_may_confirm_and_nothing_is_written(
    database: str,
) -> None:
    """By a role that may do no more than a service needs."""
    async with connected(database) as connection:
        role = sql.Identifier("squad_confirming")
        try:
            await connection.execute(sql.SQL("CREATE ROLE {}").format(role))
            await connection.execute(sql.SQL("GRANT USAGE ON SCHEMA squad TO {}").format(role))
            await connection.execute(sql.SQL("SET ROLE {}").format(role))
            await standby.confirm(connection)
            cursor = await connection.execute("SELECT pg_current_xact_id_if_assigned()")
            assert await cursor.fetchone() == (None,)
            # What it does where one is waited for: the same on every version, and no privilege of few.
            await connection.execute("SELECT pg_logical_emit_message(true, 'squad', 'seen'::text)")
        finally:
            await connection.execute("RESET ROLE")
            await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            await connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_it_waits_for_the_standby_and_only_one_at_a_time_does(server: Server) -> None:
    await miss_a_standby(server)
    async with (
        connected(server.dsn) as one,
        await connect(server.dsn, "squad", name="squad test", lock_timeout=100) as other,
    ):
        confirming = asyncio.ensure_future(standby.confirm(one))
        await eventually(lambda: server.ask(WAITING))
        with pytest.raises(StoreBusy):
            await standby.confirm(other)
        assert not confirming.done()
        await wait_for_nobody(server)
        await confirming
        await standby.confirm(other)


async def test_a_commit_whose_wait_was_cancelled_is_not_taken_for_confirmed(server: Server) -> None:
    await miss_a_standby(server)
    async with connected(server.dsn) as connection:
        appending = asyncio.ensure_future(LogWriter(connection).append(said("on this server alone")))
        await eventually(lambda: server.ask(WAITING))
        assert await server.ask(CANCEL) == 1
        with pytest.raises(StoreUnavailable, match="no standby has confirmed"):
            await appending
        # The server itself calls it committed, and shows it.
        assert texts(await whole_log(connection)) == ["on this server alone"]


async def test_an_answer_that_was_found_in_the_log_is_not_given_before_it_is_confirmed(
    server: Server,
) -> None:
    """Another process has appended it, on a connection that ended while the commit waited."""
    async with running_writer(server.dsn) as one, running_writer(server.dsn) as other:
        await submit(other, message("hello"))
        await miss_a_standby(server)
        first = asyncio.ensure_future(submit(one, message("once"), key="k", timeout_seconds=60))
        await eventually(lambda: server.ask(WAITING))
        assert await server.ask(CANCEL) == 1
        await eventually(lambda: _has_read(other, server))
        again = asyncio.ensure_future(submit(other, message("once"), key="k", timeout_seconds=60))
        await eventually(lambda: server.ask(WAITING))
        await asyncio.wait([first, again], timeout=0.5)
        assert not first.done()
        assert not again.done()
        await wait_for_nobody(server)
        repeated = (await again).repeated
        assert repeated is not None
        assert repeated.body["position"] == (await first).position
    async with connected(server.dsn) as connection:
        assert texts(await whole_log(connection)) == ["hello", "once"]


async def test_whoever_gives_up_and_comes_back_leaves_no_crowd_behind(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.writing.confirmed.STUCK_AFTER_SECONDS", 0.5)
    monkeypatch.setattr("service.writing.appender.STUCK_AFTER_SECONDS", 0.5)
    monkeypatch.setattr("service.writing.head_keeper.STUCK_AFTER_SECONDS", 0.5)
    monkeypatch.setattr("service.writing.writer._BACKOFF_SECONDS", (0.05, 0.05))
    async with running_writer(server.dsn) as writer:
        await miss_a_standby(server)
        attempts = 0
        begin = writer._appender.begin

        async def counted(connection: object) -> object:
            nonlocal attempts
            attempts += 1
            return await begin(connection)  # type: ignore[arg-type]

        monkeypatch.setattr(writer._appender, "begin", counted)
        waiting = asyncio.ensure_future(submit(writer, message("patient"), timeout_seconds=60))
        await eventually(lambda: attempts >= ATTEMPTS, within_seconds=20)
        assert not waiting.done()
        await eventually(lambda: writer.problem and "confirm" in writer.problem)
        assert await server.ask(WAITING) == 1
        await wait_for_nobody(server)
        await waiting
    async with connected(server.dsn) as connection:
        assert texts(await whole_log(connection)) == ["patient"]


async def test_readers_may_only_read_and_still_find_the_server_that_takes_writes(database: str) -> None:
    dsn = make_conninfo(database, target_session_attrs="read-write")
    async with (
        pool(dsn, "squad", name="squad reader", size=1) as readers,
        readers.connection() as connection,
    ):
        await log.head_position(connection)
        with pytest.raises(StoreUnavailable, match="read-only"):
            await LogWriter(connection).append(joined("ada"))


async def _has_read(writer: Writer, server: Server) -> bool:
    """Whether a writer knows all that its server shows."""
    async with connected(server.dsn) as connection:
        return writer.squad.head.position == await log.head_position(connection)

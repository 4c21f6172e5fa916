"""Rebuilds beside readers, projectors and writers, and rebuilds of tables that other code folded."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import IsolationLevel

from eventstore.connection import connect
from eventstore.listener import Hints
from projections import PROJECTIONS
from projections import projector as projector_module
from projections import rebuild as rebuilding
from projections.agents import agents
from projections.comparison import compare
from projections.messages import messages
from projections.projector import Projector
from projections.rebuild import rebuild
from tests.support.components import SCHEMA, connected, running, running_listener, running_writer
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.random_history import RandomHistory, submit_history_with_jobs
from tests.support.tables import fetch_value, project, projection_states
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection


class Readers:
    """Read the messages again and again; fail if there are fewer or older ones than before."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.reads = 0
        self._stop = asyncio.Event()

    async def read_until_stopped(self, isolation: IsolationLevel) -> None:
        """Read with prepared statements until `stop` is called."""
        seen = (0, 0, 0)
        async with connected(self._dsn) as connection:
            await connection.set_isolation_level(isolation)
            while not self._stop.is_set():
                async with connection.transaction():
                    # In a snapshot, the two tables and the position must be consistent.
                    position = await self._number(
                        connection, "SELECT min(position) FROM projections WHERE name <> 'jobs'"
                    )
                    message_count = await self._number(connection, "SELECT count(*) FROM squad_messages")
                    last = await self._number(
                        connection, "SELECT coalesce(max(position), 0) FROM squad_messages"
                    )
                    claimed = await self._number(connection, "SELECT count(*) FROM operations")
                if isolation is IsolationLevel.REPEATABLE_READ:
                    assert last <= position
                    cursor = await connection.execute(
                        "SELECT count(*) FROM events WHERE type = 'message_sent' AND position <= %s",
                        (position,),
                    )
                    row = await cursor.fetchone()
                    assert row == (message_count,)
                now = (position, message_count, claimed)
                assert all(later >= earlier for later, earlier in zip(now, seen, strict=True))
                seen = now
                self.reads += 1
                await asyncio.sleep(0)

    async def _number(self, connection: Connection, query: str) -> int:
        row = await (await connection.execute(query.encode(), prepare=True)).fetchone()
        assert row is not None
        return int(row[0])

    def stop(self) -> None:
        self._stop.set()


async def test_readers_see_no_gap_and_no_older_rows_during_swaps_under_load(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "CLOSE_EVENTS", 20)
    caplog.set_level(logging.INFO, "projections.projector")
    stop = asyncio.Event()

    readers = Readers(database)
    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as writer,
        connected(database) as connection,
    ):
        await submit_history_with_jobs(writer, 9, 200)
        projector = Projector(database, SCHEMA, listener.events)
        async with running(projector.run()):
            await eventually(partial(projected_to_head, database))
            load = asyncio.gather(*(RandomHistory(seed).submit_until(stop, writer) for seed in range(6)))
            reading = asyncio.gather(
                readers.read_until_stopped(IsolationLevel.READ_COMMITTED),
                readers.read_until_stopped(IsolationLevel.REPEATABLE_READ),
            )
            for number in range(5):
                # A column that no reader reads, so that there is always something to replace.
                await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
                reads = readers.reads
                rebuilt = await rebuild(database, SCHEMA)
                assert sum(replaced.written for replaced in rebuilt.tables) > 0
                assert await compare(database, SCHEMA) == [], number
                await eventually(lambda reads=reads: readers.reads > reads)  # type: ignore[misc]
                assert not reading.done()
            stop.set()
            await load
            await eventually(partial(projected_to_head, database))
            readers.stop()
            await reading
    assert await compare(database, SCHEMA) == []
    assert {record.levelname for record in caplog.records} <= {"INFO"}


async def test_idle_projector_notices_a_rebuild_and_goes_on(
    database: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "projections.projector")
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"), message_sent("one"))
    async with running_listener(database) as listener:
        idle = Projector(database, SCHEMA, listener.events)
        async with running(idle.run()):
            await eventually(partial(projected_to_head, database))
            await rebuild(database, SCHEMA)
            await eventually(lambda: "rebuilt" in caplog.text)
            assert idle.active
            await log_writer.append(message_sent("two"))
            await eventually(partial(projected_to_head, database))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert await compare(database, SCHEMA) == []


async def test_projector_that_is_blocked_for_long_logs_no_warning_and_goes_on(
    database: str,
    connection: Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "projections.projector")
    monkeypatch.setattr(projector_module, "connect", partial(connect, lock_timeout=50))
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"))
    async with running(Projector(database, SCHEMA, Hints()).run()), connected(database) as holder:
        await eventually(partial(projected_to_head, database))
        await holder.execute("BEGIN")
        await holder.execute("LOCK TABLE projections IN SHARE ROW EXCLUSIVE MODE")
        await log_writer.append(message_sent("one"))
        await eventually(lambda: caplog.text.count("starts over") > 1)
        await holder.execute("COMMIT")
        await eventually(partial(projected_to_head, database))
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert await compare(database, SCHEMA) == []


async def test_projector_discards_its_cached_rows_after_a_rebuild(
    database: str, connection: Connection
) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"))
    await project(database)
    await connection.execute("UPDATE squad_agents SET role = 'tampered'")
    projector = Projector(database, SCHEMA, Hints())
    async with running(projector.run()):
        await log_writer.append(message_sent("one"))
        await eventually(partial(projected_to_head, database))
        assert await fetch_value(connection, "SELECT role FROM squad_agents") == "tampered"
        await rebuild(database, SCHEMA)
        # Whether it has noticed the rebuild yet or not.
        await log_writer.append(message_sent("two"))
        await eventually(partial(projected_to_head, database))
    assert await fetch_value(connection, "SELECT role FROM squad_agents") == "tester"
    assert await compare(database, SCHEMA) == []


async def test_failed_projection_resumes_after_a_rebuild(database: str, connection: Connection) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"), message_sent("one"))
    await connection.execute("ALTER TABLE squad_messages ADD CONSTRAINT few CHECK (message <> 'two')")
    projector = Projector(database, SCHEMA, Hints())
    async with running(projector.run()):
        await log_writer.append(message_sent("two"))
        await eventually(lambda: projector.failed)
        assert projector.positions["messages"] == 2
        await connection.execute("ALTER TABLE squad_messages DROP CONSTRAINT few")
        await rebuild(database, SCHEMA, [messages])
        await eventually(lambda: not projector.failed and projector.positions["messages"] == 3)
        await log_writer.append(message_sent("three"))
        await eventually(partial(projected_to_head, database))
    assert await compare(database, SCHEMA) == []


class TestTablesFoldedByOtherCode:
    """The process that becomes the projector rebuilds them, unseen by readers."""

    newer = replace(messages, fold_version=messages.fold_version + 1)

    @pytest.fixture
    async def log_writer(self, database: str, connection: Connection) -> LogWriter:
        """Appends to a log of two messages, whose table is not what this code would make of it."""
        log_writer = LogWriter(connection)
        await log_writer.append(agent_registered("alice"), message_sent("one"), message_sent("two"))
        await project(database)
        await connection.execute("UPDATE squad_messages SET message = 'old'")
        return log_writer

    def _projector(self, database: str) -> Projector:
        others = [projection for projection in PROJECTIONS if projection is not messages]
        return Projector(database, SCHEMA, Hints(), [*others, self.newer])

    async def test_old_rows_stay_until_the_new_ones_are_complete_and_others_go_on(
        self, database: str, connection: Connection, log_writer: LogWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        swap, may_swap = rebuilding._swap, asyncio.Event()

        async def wait_and_swap(*args: Any) -> Any:
            await may_swap.wait()
            return await swap(*args)

        monkeypatch.setattr(rebuilding, "_swap", wait_and_swap)
        projector = self._projector(database)
        old = "SELECT array_agg(message) FROM squad_messages"
        async with running(projector.run()):
            await eventually(lambda: projector.active)
            await log_writer.append(message_sent("three"))
            await eventually(lambda: projector.positions["agents"] == 4)
            assert projector.positions["messages"] == 0
            assert await fetch_value(connection, old) == ["old", "old"]
            assert (await projection_states(connection))["messages"][:2] == (3, messages.fold_version)
            may_swap.set()
            await eventually(lambda: projector.positions["messages"] == 4)
        assert await fetch_value(connection, old) == ["one", "two", "three"]
        assert (await projection_states(connection))["messages"][:2] == (4, self.newer.fold_version)

    async def test_rebuild_in_progress_updates_its_time_in_the_table_of_projections(
        self, database: str, connection: Connection, log_writer: LogWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del log_writer
        monkeypatch.setattr("projections.background_rebuild.REPORT_EVERY_SECONDS", 0.0)
        may_swap = asyncio.Event()

        async def wait(*args: Any) -> Any:
            del args
            await may_swap.wait()

        monkeypatch.setattr(rebuilding, "_swap", wait)
        updated_at = "SELECT updated_at FROM projections WHERE name = 'messages'"
        before = await fetch_value(connection, updated_at)
        async with running(self._projector(database).run()):

            async def is_updated() -> bool:
                return bool(await fetch_value(connection, updated_at) > before)

            await eventually(is_updated)

    async def test_rebuild_completes_however_long_its_swap_blocks_the_projector(
        self,
        database: str,
        connection: Connection,
        log_writer: LogWriter,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Meanwhile the projector starts over again and again, and the rebuild does not."""
        caplog.set_level(logging.INFO, "projections")
        monkeypatch.setattr(projector_module, "connect", partial(connect, lock_timeout=50))
        fold, may_go_on, swaps = rebuilding._fold_to_head, asyncio.Event(), 0

        async def fold_slowly(*args: Any) -> int:
            nonlocal swaps
            swaps += 1
            await may_go_on.wait()
            return await fold(*args)

        monkeypatch.setattr(rebuilding, "_fold_to_head", fold_slowly)
        projector = self._projector(database)
        async with running(projector.run()):
            await eventually(lambda: swaps)
            await log_writer.append(message_sent("three"))
            await eventually(lambda: caplog.text.count("starts over") > 2)
            may_go_on.set()
            await eventually(lambda: projector.positions["messages"] == 4)
            await eventually(partial(projected_to_head, database))
        assert swaps == 1
        assert {record.levelname for record in caplog.records} == {"INFO"}
        messages_ = "SELECT array_agg(message ORDER BY position) FROM squad_messages"
        assert await fetch_value(connection, messages_) == ["one", "two", "three"]

    async def test_projection_far_behind_is_rebuilt_without_delaying_the_others(
        self, database: str, connection: Connection, log_writer: LogWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such as one that a release has added to a long log."""
        monkeypatch.setattr("projections.progress.FAR_BEHIND_EVENTS", 1)
        swap, may_swap = rebuilding._swap, asyncio.Event()

        async def wait_and_swap(*args: Any) -> Any:
            await may_swap.wait()
            return await swap(*args)

        monkeypatch.setattr(rebuilding, "_swap", wait_and_swap)
        await connection.execute("DELETE FROM squad_messages")
        await connection.execute("UPDATE projections SET position = 0 WHERE name = 'messages'")
        projector = Projector(database, SCHEMA, Hints())
        async with running(projector.run()):
            await eventually(lambda: projector.active)
            await log_writer.append(message_sent("three"))
            await eventually(lambda: projector.positions["agents"] == 4)
            assert projector.positions["messages"] == 0
            may_swap.set()
            await eventually(lambda: projector.positions["messages"] == 4)
        assert await compare(database, SCHEMA) == []

    async def test_old_rows_stay_and_the_error_is_reported_when_the_log_cannot_be_folded(
        self, database: str, connection: Connection, log_writer: LogWriter
    ) -> None:
        await log_writer.append(agent_registered("bob"), schema_version=9)
        projector = self._projector(database)
        async with running(projector.run()):
            await eventually(lambda: len(projector.failed) == len(PROJECTIONS))
        assert projector.failed["messages"][0] == 4
        assert "agent_registered v9 at position 4" in projector.failed["messages"][1]
        assert (await projection_states(connection))["messages"][:3] == (3, messages.fold_version, 4)
        assert await fetch_value(connection, "SELECT array_agg(message) FROM squad_messages") == [
            "old",
            "old",
        ]

    async def test_projections_are_rebuilt_one_by_one_when_not_all_can_be(
        self, database: str, connection: Connection, log_writer: LogWriter
    ) -> None:
        """A message from an unknown agent stops the projection of agents, not that of messages."""
        await log_writer.append(message_sent("by nobody", agent="mallory"))
        newer_agents = replace(agents, fold_version=agents.fold_version + 1)
        others = [each for each in PROJECTIONS if each not in (messages, agents)]
        projector = Projector(database, SCHEMA, Hints(), [*others, self.newer, newer_agents])
        async with running(projector.run()):
            await eventually(lambda: projector.failed and projector.positions["messages"] == 4)
        assert projector.failed == {"agents": (4, "MissingRow: squad_agents has no row 'mallory'")}
        assert (
            await fetch_value(connection, "SELECT count(*) FROM squad_messages WHERE message <> 'old'") == 3
        )

    async def test_rebuild_is_retried_when_another_one_was_in_progress(
        self, database: str, connection: Connection, log_writer: LogWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del log_writer
        monkeypatch.setattr(rebuilding, "LOCK_TIMEOUT_SECONDS", 0.0)
        try_lock = rebuilding._TRY_LOCK
        assert await fetch_value(connection, try_lock)
        projector = self._projector(database)
        async with running(projector.run()):
            await eventually(lambda: projector.active)
            await connection.execute("SELECT pg_advisory_unlock_all()")
            await eventually(lambda: projector.positions["messages"] == 3)
        assert await fetch_value(connection, "SELECT array_agg(message) FROM squad_messages") == [
            "one",
            "two",
        ]

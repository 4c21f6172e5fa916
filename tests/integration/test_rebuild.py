"""Replay: the tables become what the log says, and nobody who reads or writes them meanwhile notices."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo

from eventstore import log, schema
from eventstore.connection import connect
from eventstore.errors import LogBroken, StoreBusy, UnknownEventType
from eventstore.listener import Hints
from projections import PROJECTIONS, replacing
from projections import projector as projector_module
from projections import rebuild as rebuilding
from projections.agents import agents
from projections.comparison import compare
from projections.messages import messages
from projections.projector import Projector
from projections.rebuild import rebuild
from tests.support.life import Life, live_with_jobs
from tests.support.log import Scribe, joined, new_id, said
from tests.support.parts import SCHEMA, backends, connected, running, running_listener, running_writer
from tests.support.tampering import TABLES, Tampering
from tests.support.verify import assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection
    from service.writer import Writer


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    async with connected(database) as opened:
        yield opened


async def _project(dsn: str) -> None:
    async with running(Projector(dsn, SCHEMA, Hints()).run()):
        await eventually(partial(projected_to_head, dsn))


async def _history(dsn: str, seed: int) -> None:
    """Something in every table."""
    async with running_writer(dsn) as writer:
        await live_with_jobs(writer, seed, 300)
    await _project(dsn)


async def _standings(connection: Connection) -> dict[str, tuple[int, int, int | None, str | None, int]]:
    cursor = await connection.execute(
        "SELECT name, position, fold_version, failed_position, error, generation FROM projections"
    )
    return {name: tuple(standing) for name, *standing in await cursor.fetchall()}


async def _one(connection: Connection, query: str) -> Any:
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("close", [0, 10_000], ids=["folded before", "folded in the swap"])
async def test_whatever_was_done_to_the_tables_is_undone(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, close: int
) -> None:
    monkeypatch.setattr(rebuilding, "CLOSE_EVENTS", close)
    await _history(database, seed=1)
    tampering = await Tampering.of(connection)
    for number, table in enumerate(TABLES):
        match number % 3:
            case 0:
                await tampering.remove(table)
            case 1:
                await tampering.add(table)
            case _:
                await tampering.change(table, "position")
    rebuilt = await rebuild(database, SCHEMA)
    assert await compare(database, SCHEMA) == []
    for number, replaced in enumerate(rebuilt.tables):
        assert replaced.table == TABLES[number].name
        expected = {0: (1, 0), 1: (0, 1), 2: (1, 1)}[number % 3]
        assert (replaced.written, replaced.removed) == expected


async def test_tables_that_were_emptied_are_filled(database: str, connection: Connection) -> None:
    await _history(database, seed=2)
    await connection.execute(f"TRUNCATE {', '.join(table.name for table in TABLES)}".encode())
    rebuilt = await rebuild(database, SCHEMA)
    assert sum(replaced.written for replaced in rebuilt.tables) == await assert_tables_equal_fold(database)


async def test_rows_that_are_right_are_not_written_again(database: str, connection: Connection) -> None:
    await _history(database, seed=3)
    versions = "SELECT string_agg(xmin::text || ctid::text, ',' ORDER BY id) FROM squad_messages"
    before = await _one(connection, versions)
    rebuilt = await rebuild(database, SCHEMA)
    assert {(replaced.written, replaced.removed) for replaced in rebuilt.tables} == {(0, 0)}
    assert await _one(connection, versions) == before


async def test_an_empty_log_makes_empty_tables(database: str) -> None:
    rebuilt = await rebuild(database, SCHEMA)
    assert rebuilt.position == 0
    assert {replaced.rows for replaced in rebuilt.tables} == {0}
    assert await compare(database, SCHEMA) == []


async def test_a_squad_that_was_never_projected_is_at_the_head_afterwards(
    database: str, connection: Connection
) -> None:
    await Scribe(connection).append(joined("alice"), said("one"))
    assert (await rebuild(database, SCHEMA)).position == 2
    assert {position for position, *_ in (await _standings(connection)).values()} == {2}
    assert await compare(database, SCHEMA) == []
    await _project(database)


async def test_only_the_tables_of_the_projections_that_are_named_are_touched(
    database: str, connection: Connection
) -> None:
    await Scribe(connection).append(joined("alice"), said("one"))
    await _project(database)
    await connection.execute("TRUNCATE squad_agents, squad_messages")
    rebuilt = await rebuild(database, SCHEMA, [messages])
    assert [replaced.table for replaced in rebuilt.tables] == ["squad_messages", "squad_message_acks"]
    [left] = await compare(database, SCHEMA)
    assert left.projection == "agents"


async def test_one_that_stopped_goes_on_from_the_head(database: str, connection: Connection) -> None:
    await Scribe(connection).append(joined("alice"), said("one"))
    await _project(database)
    await connection.execute(
        "UPDATE projections SET position = 1, failed_position = 2, error = 'x' WHERE name = 'messages'"
    )
    await connection.execute("TRUNCATE squad_messages")
    await rebuild(database, SCHEMA, [messages])
    standing = (await _standings(connection))["messages"]
    assert standing[:4] == (2, messages.fold_version, None, None)
    assert await compare(database, SCHEMA) == []


async def test_the_generation_of_all_grows_with_every_replay(database: str, connection: Connection) -> None:
    await _project(database)
    for generation in (2, 3):
        await rebuild(database, SCHEMA, [messages])
        assert {standing[4] for standing in (await _standings(connection)).values()} == {generation}


async def test_a_table_that_was_dropped_is_made_again_as_it_was(
    database: str, connection: Connection
) -> None:
    await _history(database, seed=4)
    shape = (
        "SELECT string_agg(indexdef, ';' ORDER BY indexdef) ||"
        " (SELECT string_agg(conname, ';' ORDER BY conname) FROM pg_constraint"
        " WHERE conrelid = '{0}'::regclass)"
        " FROM pg_indexes WHERE tablename = '{0}' AND schemaname = 'squad'"
    )
    for table in TABLES:
        before = await _one(connection, shape.format(table.name))
        await connection.execute(f"DROP TABLE {table.name}".encode())
        await rebuild(database, SCHEMA)
        assert await _one(connection, shape.format(table.name)) == before
    assert await compare(database, SCHEMA) == []


async def test_rows_that_are_there_twice_are_there_once_afterwards(
    database: str, connection: Connection
) -> None:
    await _history(database, seed=5)
    await connection.execute("ALTER TABLE squad_agents DROP CONSTRAINT squad_agents_pkey")
    await connection.execute("INSERT INTO squad_agents SELECT * FROM squad_agents")
    await rebuild(database, SCHEMA, [agents])
    await connection.execute("ALTER TABLE squad_agents ADD PRIMARY KEY (name)")
    assert await compare(database, SCHEMA) == []


async def test_what_hangs_on_a_table_stays(database: str, connection: Connection) -> None:
    await Scribe(connection).append(joined("alice"), said("one"))
    await _project(database)
    await connection.execute("CREATE VIEW loud AS SELECT upper(message) AS message FROM squad_messages")
    await connection.execute("CREATE INDEX of_my_own ON squad_messages (message)")
    await connection.execute("GRANT SELECT ON squad_messages TO pg_monitor")
    await connection.execute("CREATE POLICY mine ON squad_messages USING (true)")
    await connection.execute("UPDATE squad_messages SET message = 'two'")
    await rebuild(database, SCHEMA)
    assert await _one(connection, "SELECT message FROM loud") == "ONE"
    assert await _one(connection, "SELECT to_regclass('of_my_own')::text") == "of_my_own"
    assert await _one(connection, "SELECT has_table_privilege('pg_monitor', 'squad_messages', 'SELECT')")
    assert await _one(connection, "SELECT count(*) FROM pg_policy WHERE polname = 'mine'") == 1


@pytest.mark.parametrize("unknown", [{"schema_version": 9}, {"type": "from_the_future"}], ids=str)
async def test_an_event_of_newer_code_ends_it_and_the_tables_are_as_they_were(
    database: str, connection: Connection, unknown: dict[str, Any]
) -> None:
    scribe = Scribe(connection)
    await scribe.append(joined("alice"), said("one"))
    await _project(database)
    await connection.execute("UPDATE squad_messages SET message = 'tampered'")
    await scribe.append(joined("bob"), **unknown)
    before = await _standings(connection)
    with pytest.raises(UnknownEventType, match=r"v\d at position 3$") as raised:
        await rebuild(database, SCHEMA)
    assert raised.value.position == 3
    assert await _standings(connection) == before
    assert await _one(connection, "SELECT message FROM squad_messages") == "tampered"


async def test_tables_that_are_further_than_the_log_are_left_alone(
    database: str, connection: Connection
) -> None:
    """As where a backup was restored that lacks the end of the log."""
    await Scribe(connection).append(joined("alice"))
    await _project(database)
    await connection.execute("UPDATE projections SET position = 3 WHERE name = 'agents'")
    before = await _standings(connection)
    with pytest.raises(LogBroken, match="position 2 is missing"):
        await rebuild(database, SCHEMA)
    assert await _standings(connection) == before


async def test_a_second_replay_at_the_same_time_is_refused(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "ALONE_WITHIN_SECONDS", 0.2)
    await Scribe(connection).append(joined("alice"))
    await connection.execute("BEGIN")
    await connection.execute("LOCK TABLE projections")
    first = asyncio.create_task(rebuild(database, SCHEMA))
    await eventually(partial(_waits_for_a_lock, database))
    with pytest.raises(StoreBusy, match="another replay is under way"):
        await rebuild(database, SCHEMA)
    await connection.execute("COMMIT")
    assert (await first).position == 1


async def _waits_for_a_lock(dsn: str) -> bool:
    async with connected(dsn) as connection:
        return bool(
            await _one(
                connection,
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                " AND application_name = 'squad replay'",
            )
        )


async def test_whoever_holds_what_it_needs_holds_it_up_only_for_a_while(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "_LOCK_MILLISECONDS", 50)
    await Scribe(connection).append(joined("alice"), said("one"))
    await _project(database)
    await connection.execute("UPDATE squad_messages SET message = 'tampered'")
    await connection.execute("BEGIN")
    await connection.execute("SELECT FROM squad_messages FOR UPDATE")
    with pytest.raises(StoreBusy):
        await rebuild(database, SCHEMA)
    await connection.execute("COMMIT")
    assert await _one(connection, "SELECT message FROM squad_messages") == "tampered"
    await rebuild(database, SCHEMA)
    assert await _one(connection, "SELECT message FROM squad_messages") == "one"


async def test_a_swap_that_failed_is_made_again_from_what_was_really_folded(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as writer:
        await Life(seed=6).live(writer, 200)
    await _project(database)
    # All is folded in the swap, and the first ones of it are rolled back.
    failures = iter(range(3))

    async def fail_at_first(*args: Any) -> Any:
        if next(failures, None) is not None:
            raise StoreBusy("somebody holds it")
        return await replacing.replace(*args)

    monkeypatch.setattr(rebuilding, "replace", fail_at_first)
    await connection.execute("TRUNCATE squad_messages, operations")
    await rebuild(database, SCHEMA)
    assert next(failures, None) is None
    assert await compare(database, SCHEMA) == []


async def test_what_happens_between_the_survey_and_the_swap_is_not_lost(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events come in, the projector writes what follows from wrong rows, and somebody tampers once more."""
    monkeypatch.setattr(rebuilding, "CLOSE_EVENTS", 0)
    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as writer,
    ):
        life = Life(seed=6)
        await life.live(writer, 200)
        await _project(database)
        await connection.execute("UPDATE squad_agents SET role = 'tampered'")
        await connection.execute("UPDATE reservations SET agent = 'mallory' WHERE state = 'active'")

        async def survey_and_live_on(*args: Any) -> Any:
            found = await replacing.survey(*args)
            await life.live(writer, 100)
            await eventually(partial(projected_to_head, database))
            await connection.execute("UPDATE squad_tasks SET title = 'tampered'")
            ack = "INSERT INTO squad_message_acks VALUES (%s, 'x', now(), 1)"
            await connection.execute(ack, (new_id(),))
            return found

        monkeypatch.setattr(rebuilding, "survey", survey_and_live_on)
        async with running(Projector(database, SCHEMA, listener.events).run()):
            await rebuild(database, SCHEMA)
            await life.live(writer, 20)
            await eventually(partial(projected_to_head, database))
    assert await compare(database, SCHEMA) == []


async def test_it_tells_how_far_it_is(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await _history(database, seed=7)
    monkeypatch.setattr(log.scan, "__defaults__", (0, None, 100))
    told: list[tuple[int, int]] = []
    rebuilt = await rebuild(database, SCHEMA, progress=lambda position, goal: told.append((position, goal)))
    assert [position for position, _ in told] == [*range(100, rebuilt.position, 100), rebuilt.position]
    assert {goal for _, goal in told} == {rebuilt.position}


async def test_nothing_of_it_is_left(database: str, connection: Connection) -> None:
    await _history(database, seed=8)
    before = await _one(connection, "SELECT count(*) FROM pg_class")
    await rebuild(database, SCHEMA)
    await eventually(partial(_is_gone, connection))
    assert await _one(connection, "SELECT count(*) FROM pg_class") == before


async def _is_gone(connection: Connection) -> bool:
    return not await backends(connection, "squad replay")


async def test_another_squad_of_the_database_is_not_touched(database: str, connection: Connection) -> None:
    await schema.apply(database, "squad_b")
    await Scribe(connection).append(joined("alice"), said("one"))
    async with connected(database, "squad_b") as other:
        await Scribe(other).append(joined("bob"))
        async with running(Projector(database, "squad_b", Hints()).run()):
            await eventually(partial(projected_to_head, database, "squad_b"))
        await other.execute("TRUNCATE squad_agents")
        before = await _standings(other)
        await rebuild(database, SCHEMA)
        assert await _standings(other) == before
        assert await _one(other, "SELECT count(*) FROM squad_agents") == 0


async def test_a_role_that_owns_the_schema_and_nothing_else_may_replay_and_compare(
    empty_database: str,
) -> None:
    role = f"tenant_{uuid4().hex}"
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as admin:
        await admin.execute(f"CREATE ROLE {role}".encode())
        await admin.execute(f"CREATE SCHEMA squad AUTHORIZATION {role}".encode())
        as_tenant = make_conninfo(empty_database, options=f"-c role={role}")
        try:
            await schema.apply(as_tenant, SCHEMA)
            async with connected(as_tenant) as connection:
                await Scribe(connection).append(joined("alice"), said("one"))
                await rebuild(as_tenant, SCHEMA)
                await connection.execute("DROP TABLE squad_agents")
                await rebuild(as_tenant, SCHEMA)
            assert await compare(as_tenant, SCHEMA) == []
        finally:
            await admin.execute(f"DROP OWNED BY {role}".encode())
            await admin.execute(f"DROP ROLE {role}".encode())


class Readers:
    """Look at the messages again and again, and fail where there are fewer or older ones than before."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.looks = 0
        self._enough = asyncio.Event()

    async def look(self, isolation: IsolationLevel) -> None:
        """Reads for as long as it may, by prepared statements."""
        seen = (0, 0, 0)
        async with connected(self._dsn) as connection:
            await connection.set_isolation_level(isolation)
            while not self._enough.is_set():
                async with connection.transaction():
                    # Two tables and the position: in a snapshot they must fit together.
                    position = await self._number(
                        connection, "SELECT min(position) FROM projections WHERE name <> 'jobs'"
                    )
                    said_ = await self._number(connection, "SELECT count(*) FROM squad_messages")
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
                    assert row == (said_,)
                now = (position, said_, claimed)
                assert all(later >= earlier for later, earlier in zip(now, seen, strict=True))
                seen = now
                self.looks += 1
                await asyncio.sleep(0)

    async def _number(self, connection: Connection, query: str) -> int:
        row = await (await connection.execute(query.encode(), prepare=True)).fetchone()
        assert row is not None
        return int(row[0])

    def end(self) -> None:
        self._enough.set()


async def test_readers_see_no_gap_and_nothing_older_while_it_swaps_under_load(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "CLOSE_EVENTS", 20)
    caplog.set_level(logging.INFO, "projections.projector")
    enough = asyncio.Event()

    async def live(writer: Writer, seed: int) -> None:
        life = Life(seed)
        while not enough.is_set():
            await life.live(writer, 10)

    readers = Readers(database)
    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as writer,
        connected(database) as connection,
    ):
        await live_with_jobs(writer, 9, 200)
        projector = Projector(database, SCHEMA, listener.events)
        async with running(projector.run()):
            await eventually(partial(projected_to_head, database))
            lives = asyncio.gather(*(live(writer, seed) for seed in range(6)))
            reading = asyncio.gather(
                readers.look(IsolationLevel.READ_COMMITTED), readers.look(IsolationLevel.REPEATABLE_READ)
            )
            for number in range(5):
                # A column that nobody reads here, so that there is always something to replace.
                await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
                looks = readers.looks
                rebuilt = await rebuild(database, SCHEMA)
                assert sum(replaced.written for replaced in rebuilt.tables) > 0
                assert await compare(database, SCHEMA) == [], number
                await eventually(lambda looks=looks: readers.looks > looks)  # type: ignore[misc]
                assert not reading.done()
            enough.set()
            await lives
            await eventually(partial(projected_to_head, database))
            readers.end()
            await reading
    assert await compare(database, SCHEMA) == []
    assert {record.levelname for record in caplog.records} <= {"INFO"}


async def test_a_projector_with_nothing_to_do_notices_and_goes_on(
    database: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "projections.projector")
    scribe = Scribe(connection)
    await scribe.append(joined("alice"), said("one"))
    async with running_listener(database) as listener:
        idle = Projector(database, SCHEMA, listener.events)
        async with running(idle.run()):
            await eventually(partial(projected_to_head, database))
            await rebuild(database, SCHEMA)
            await eventually(lambda: "rebuilt" in caplog.text)
            assert idle.active
            await scribe.append(said("two"))
            await eventually(partial(projected_to_head, database))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert await compare(database, SCHEMA) == []


async def test_a_projector_that_is_held_up_for_long_says_so_calmly_and_goes_on(
    database: str,
    connection: Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "projections.projector")
    monkeypatch.setattr(projector_module, "connect", partial(connect, lock_timeout=50))
    scribe = Scribe(connection)
    await scribe.append(joined("alice"))
    async with running(Projector(database, SCHEMA, Hints()).run()), connected(database) as holder:
        await eventually(partial(projected_to_head, database))
        await holder.execute("BEGIN")
        await holder.execute("LOCK TABLE projections IN SHARE ROW EXCLUSIVE MODE")
        await scribe.append(said("one"))
        await eventually(lambda: caplog.text.count("begins anew") > 1)
        await holder.execute("COMMIT")
        await eventually(partial(projected_to_head, database))
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert await compare(database, SCHEMA) == []


async def test_a_projector_forgets_the_rows_that_it_had_at_hand(
    database: str, connection: Connection
) -> None:
    scribe = Scribe(connection)
    await scribe.append(joined("alice"))
    await _project(database)
    await connection.execute("UPDATE squad_agents SET role = 'tampered'")
    projector = Projector(database, SCHEMA, Hints())
    async with running(projector.run()):
        await scribe.append(said("one"))
        await eventually(partial(projected_to_head, database))
        assert await _one(connection, "SELECT role FROM squad_agents") == "tampered"
        await rebuild(database, SCHEMA)
        # Whether it has noticed by now or not.
        await scribe.append(said("two"))
        await eventually(partial(projected_to_head, database))
    assert await _one(connection, "SELECT role FROM squad_agents") == "tester"
    assert await compare(database, SCHEMA) == []


async def test_a_projector_that_failed_goes_on_after_a_replay(
    database: str, connection: Connection
) -> None:
    scribe = Scribe(connection)
    await scribe.append(joined("alice"), said("one"))
    await connection.execute("ALTER TABLE squad_messages ADD CONSTRAINT few CHECK (message <> 'two')")
    projector = Projector(database, SCHEMA, Hints())
    async with running(projector.run()):
        await scribe.append(said("two"))
        await eventually(lambda: projector.failed)
        assert projector.positions["messages"] == 2
        await connection.execute("ALTER TABLE squad_messages DROP CONSTRAINT few")
        await rebuild(database, SCHEMA, [messages])
        await eventually(lambda: not projector.failed and projector.positions["messages"] == 3)
        await scribe.append(said("three"))
        await eventually(partial(projected_to_head, database))
    assert await compare(database, SCHEMA) == []


class TestTablesThatOtherCodeFolded:
    """Whoever becomes the projector rebuilds them, and nobody sees how."""

    newer = replace(messages, fold_version=messages.fold_version + 1)

    @pytest.fixture
    async def scribe(self, database: str, connection: Connection) -> Scribe:
        """Two messages in a table that is not what this code would make of them."""
        scribe = Scribe(connection)
        await scribe.append(joined("alice"), said("one"), said("two"))
        await _project(database)
        await connection.execute("UPDATE squad_messages SET message = 'old'")
        return scribe

    def _projector(self, database: str) -> Projector:
        others = [projection for projection in PROJECTIONS if projection is not messages]
        return Projector(database, SCHEMA, Hints(), [*others, self.newer])

    async def test_keep_their_rows_until_the_new_ones_are_complete_and_hold_up_no_other(
        self, database: str, connection: Connection, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
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
            await scribe.append(said("three"))
            await eventually(lambda: projector.positions["agents"] == 4)
            assert projector.positions["messages"] == 0
            assert await _one(connection, old) == ["old", "old"]
            assert (await _standings(connection))["messages"][:2] == (3, messages.fold_version)
            may_swap.set()
            await eventually(lambda: projector.positions["messages"] == 4)
        assert await _one(connection, old) == ["one", "two", "three"]
        assert (await _standings(connection))["messages"][:2] == (4, self.newer.fold_version)

    async def test_are_not_taken_for_stuck_meanwhile(
        self, database: str, connection: Connection, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del scribe
        monkeypatch.setattr("projections.projector.REBUILDING_TOLD_EVERY_SECONDS", 0.0)
        may_swap = asyncio.Event()

        async def wait(*args: Any) -> Any:
            del args
            await may_swap.wait()

        monkeypatch.setattr(rebuilding, "_swap", wait)
        told = "SELECT updated_at FROM projections WHERE name = 'messages'"
        before = await _one(connection, told)
        async with running(self._projector(database).run()):

            async def is_told_again() -> bool:
                return bool(await _one(connection, told) > before)

            await eventually(is_told_again)

    async def test_keep_their_rows_where_the_log_cannot_be_folded_and_say_why(
        self, database: str, connection: Connection, scribe: Scribe
    ) -> None:
        await scribe.append(joined("bob"), schema_version=9)
        projector = self._projector(database)
        async with running(projector.run()):
            await eventually(lambda: len(projector.failed) == len(PROJECTIONS))
        assert projector.failed["messages"][0] == 4
        assert "agent_registered v9 at position 4" in projector.failed["messages"][1]
        assert (await _standings(connection))["messages"][:3] == (3, messages.fold_version, 4)
        assert await _one(connection, "SELECT array_agg(message) FROM squad_messages") == ["old", "old"]

    async def test_are_rebuilt_each_for_itself_where_not_all_can_be(
        self, database: str, connection: Connection, scribe: Scribe
    ) -> None:
        """A message of somebody unknown stops the agents, not the messages."""
        await scribe.append(said("by nobody", agent="mallory"))
        newer_agents = replace(agents, fold_version=agents.fold_version + 1)
        others = [each for each in PROJECTIONS if each not in (messages, agents)]
        projector = Projector(database, SCHEMA, Hints(), [*others, self.newer, newer_agents])
        async with running(projector.run()):
            await eventually(lambda: projector.failed and projector.positions["messages"] == 4)
        assert projector.failed == {"agents": (4, "MissingRow: squad_agents has no row 'mallory'")}
        assert await _one(connection, "SELECT count(*) FROM squad_messages WHERE message <> 'old'") == 3

    async def test_are_rebuilt_after_all_where_another_replay_was_first(
        self, database: str, connection: Connection, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del scribe
        monkeypatch.setattr(rebuilding, "ALONE_WITHIN_SECONDS", 0.0)
        take_the_place = rebuilding._TRY_LOCK
        assert await _one(connection, take_the_place)
        projector = self._projector(database)
        async with running(projector.run()):
            await eventually(lambda: projector.active)
            await connection.execute("SELECT pg_advisory_unlock_all()")
            await eventually(lambda: projector.positions["messages"] == 3)
        assert await _one(connection, "SELECT array_agg(message) FROM squad_messages") == ["one", "two"]

"""A rebuild makes the tables what the log says, whatever they hold, or leaves them unchanged."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from eventstore import pages, schema
from eventstore.errors import LogBroken, StoreBusy, TableMismatch, UnknownEventType
from eventstore.events import ERASED
from eventstore.listener import Hints
from projections import rebuild as rebuilding
from projections import row_cache, storage, swap
from projections.agents import agents
from projections.budgets import budgets
from projections.comparison import compare
from projections.indexes import missing_indexes
from projections.messages import messages
from projections.projector import Projector
from projections.rebuild import rebuild
from service import commands as do
from tests.support.components import (
    SCHEMA,
    backend_pids,
    connected,
    message,
    running,
    running_listener,
    running_writer,
    submit,
)
from tests.support.log import LogWriter, agent_registered, message_sent, new_id
from tests.support.log_tampering import triggers_disabled
from tests.support.random_history import RandomHistory
from tests.support.table_tampering import TABLES, Tampering
from tests.support.tables import fetch_value, fill_all_tables, project, projection_states
from tests.support.verify import assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from projections.projection import Table


@pytest.mark.parametrize("close_events", [0, 10_000], ids=["folded before", "folded in the swap"])
async def test_missing_extra_and_changed_rows_are_repaired(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, close_events: int
) -> None:
    monkeypatch.setattr(rebuilding, "CLOSE_EVENTS", close_events)
    await fill_all_tables(database, seed=1)
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


async def test_snapshots_are_deleted_with_wrong_rows_of_the_same_fold(
    database: str, connection: Connection
) -> None:
    """A process that read the wrong rows when it started may have stored them."""

    async def stored() -> int:
        cursor = await connection.execute("SELECT count(*) FROM snapshots")
        return (await cursor.fetchall())[0][0]  # type: ignore[no-any-return]

    await fill_all_tables(database, seed=1)
    tampering = await Tampering.of(connection)
    await connection.execute("INSERT INTO snapshots (fold, position, state) VALUES ('fold', 1, '')")
    assert not (await rebuild(database, SCHEMA)).were_wrong
    assert await stored() == 1

    await tampering.change(TABLES[0], "position")
    await connection.execute("UPDATE projections SET fold_version = fold_version + 1")
    assert not (await rebuild(database, SCHEMA)).were_wrong
    assert await stored() == 1

    await tampering.change(TABLES[0], "position")
    assert (await rebuild(database, SCHEMA)).were_wrong
    assert await stored() == 0


async def test_emptied_tables_are_filled(database: str, connection: Connection) -> None:
    await fill_all_tables(database, seed=2)
    await connection.execute(f"TRUNCATE {', '.join(table.name for table in TABLES)}".encode())
    rebuilt = await rebuild(database, SCHEMA)
    assert sum(replaced.written for replaced in rebuilt.tables) == await assert_tables_equal_fold(database)


@pytest.mark.parametrize(("cached_rows", "max_characters"), [(1, 2_000), (3, 2_000), (3, 0)])
async def test_rows_evicted_from_the_cache_are_fetched(
    database: str,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    cached_rows: int,
    max_characters: int,
) -> None:
    """Including those that the previous page changed and that are still being written. Rows that the page
    itself creates are not requested."""
    await fill_all_tables(database, seed=9)
    await connection.execute(f"TRUNCATE {', '.join(table.name for table in TABLES)}".encode())
    monkeypatch.setattr(row_cache, "CACHED_ROWS", cached_rows)
    monkeypatch.setattr(row_cache, "MAX_ROW_CHARACTERS", max_characters)
    monkeypatch.setattr(pages.scan, "__defaults__", (7,))
    requested, fetched = Counter[str](), Counter[str]()
    load = storage.load

    async def counting(connection: Connection, table: Table[Any, Any], keys: Sequence[Any]) -> list[Any]:
        rows = await load(connection, table, keys)
        requested[table.name] += len(keys)
        fetched[table.name] += len(rows)
        return rows

    monkeypatch.setattr(storage, "load", counting)
    await rebuild(database, SCHEMA)
    await assert_tables_equal_fold(database)
    for name in ("operations", "reservations", "squad_tasks", "email_logs", "job_runs"):
        assert requested[name] == fetched[name], name
    assert min(fetched[name] for name in ("squad_agents", "operations", "reservations")) > 0


@pytest.mark.parametrize(("first", "last"), [(1, 1), (6, 10), (8, 15), (19, 19)])
async def test_first_missing_position_is_reported(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, first: int, last: int
) -> None:
    monkeypatch.setattr(pages.scan, "__defaults__", (5,))
    await LogWriter(connection).append(
        agent_registered("alice"), *(message_sent(f"the {n}th") for n in range(2, 21))
    )
    async with triggers_disabled(connection):
        await connection.execute("DELETE FROM events WHERE position BETWEEN %s AND %s", (first, last))
    monkeypatch.setattr(rebuilding, "CLOSE_EVENTS", 0)
    with pytest.raises(LogBroken, match=f"position {first} is missing"):
        await rebuild(database, SCHEMA)


async def test_encrypted_events_after_unencrypted_ones_are_decrypted(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first encrypted event, fewer columns are read than decryption needs."""
    monkeypatch.setattr(pages.scan, "__defaults__", (3,))
    for encrypt in (False, True, False):
        async with running_writer(database, encrypt=encrypt) as writer:
            for number in range(5):
                await submit(writer, message(f"{encrypt} {number}"))
    await rebuild(database, SCHEMA)
    rows = await (
        await connection.execute("SELECT message FROM squad_messages ORDER BY position")
    ).fetchall()
    assert [text for (text,) in rows] == [
        f"{encrypt} {number}" for encrypt in (False, True, False) for number in range(5)
    ]


async def test_correct_rows_are_not_rewritten(database: str, connection: Connection) -> None:
    await fill_all_tables(database, seed=3)
    versions = "SELECT string_agg(xmin::text || ctid::text, ',' ORDER BY id) FROM squad_messages"
    before = await fetch_value(connection, versions)
    rebuilt = await rebuild(database, SCHEMA)
    assert {(replaced.written, replaced.removed) for replaced in rebuilt.tables} == {(0, 0)}
    assert await fetch_value(connection, versions) == before


async def test_empty_log_makes_empty_tables(database: str) -> None:
    rebuilt = await rebuild(database, SCHEMA)
    assert rebuilt.position == 0
    assert {replaced.rows for replaced in rebuilt.tables} == {0}
    assert await compare(database, SCHEMA) == []


async def test_tables_that_were_never_projected_are_at_the_head_afterwards(
    database: str, connection: Connection
) -> None:
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    assert (await rebuild(database, SCHEMA)).position == 2
    assert {position for position, *_ in (await projection_states(connection)).values()} == {2}
    assert await compare(database, SCHEMA) == []
    await project(database)


async def test_only_the_tables_of_the_given_projections_are_rebuilt(
    database: str, connection: Connection
) -> None:
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    await project(database)
    await connection.execute("TRUNCATE squad_agents, squad_messages")
    rebuilt = await rebuild(database, SCHEMA, [messages])
    assert [replaced.table for replaced in rebuilt.tables] == ["squad_messages", "squad_message_acks"]
    [left] = await compare(database, SCHEMA)
    assert left.projection == "agents"


async def test_stopped_projection_continues_from_the_head(database: str, connection: Connection) -> None:
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    await project(database)
    await connection.execute(
        "UPDATE projections SET position = 1, failed_position = 2, error = 'x' WHERE name = 'messages'"
    )
    await connection.execute("TRUNCATE squad_messages")
    await rebuild(database, SCHEMA, [messages])
    row = (await projection_states(connection))["messages"]
    assert row[:4] == (2, messages.fold_version, None, None)
    assert await compare(database, SCHEMA) == []


async def test_generation_of_all_projections_grows_with_every_rebuild(
    database: str, connection: Connection
) -> None:
    await project(database)
    for generation in (2, 3):
        await rebuild(database, SCHEMA, [messages])
        assert {row[4] for row in (await projection_states(connection)).values()} == {generation}


async def test_dropped_table_is_recreated_with_its_indexes_and_constraints(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=4)
    shape = (
        "SELECT string_agg(indexdef, ';' ORDER BY indexdef) ||"
        " (SELECT string_agg(conname, ';' ORDER BY conname) FROM pg_constraint"
        " WHERE conrelid = '{0}'::regclass)"
        " FROM pg_indexes WHERE tablename = '{0}' AND schemaname = 'squad'"
    )
    for table in TABLES:
        before = await fetch_value(connection, shape.format(table.name))
        await connection.execute(f"DROP TABLE {table.name}".encode())
        await rebuild(database, SCHEMA)
        assert await fetch_value(connection, shape.format(table.name)) == before
    assert await compare(database, SCHEMA) == []


async def test_renamed_table_is_recreated_beside_the_renamed_one(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=4)
    await connection.execute("ALTER TABLE squad_messages RENAME TO squad_messages_before")
    kept = "SELECT count(*) FROM pg_indexes WHERE tablename = 'squad_messages_before'"
    indexes = await fetch_value(connection, kept)
    assert (await rebuild(database, SCHEMA)).lost == ()
    assert await fetch_value(connection, kept) == indexes
    assert await missing_indexes(connection, SCHEMA) == []
    assert await compare(database, SCHEMA) == []


async def test_missing_table_of_projections_is_reported(database: str, connection: Connection) -> None:
    await connection.execute("DROP TABLE projections")
    with pytest.raises(TableMismatch, match=r"projections does not exist"):
        await rebuild(database, SCHEMA)


async def test_missing_and_invalid_indexes_are_recreated(database: str, connection: Connection) -> None:
    await fill_all_tables(database, seed=7)
    shape = (
        "SELECT string_agg(indexdef, ';' ORDER BY indexdef) FROM pg_indexes"
        " WHERE schemaname = 'squad' AND tablename NOT IN ('events', 'subject_keys')"
    )
    before = await fetch_value(connection, shape)
    assert await missing_indexes(connection, SCHEMA) == []
    # An operator's own index does no harm, and neither does another name.
    await connection.execute("CREATE INDEX own ON squad_tasks (title)")
    await connection.execute("ALTER INDEX email_logs_by_status RENAME TO another_name")
    assert await missing_indexes(connection, SCHEMA) == []
    await connection.execute("DROP INDEX own; ALTER INDEX another_name RENAME TO email_logs_by_status")
    await connection.execute(
        "DROP INDEX squad_messages_from, squad_messages_task, operations_by_state;"
        " ALTER TABLE squad_tasks DROP CONSTRAINT squad_tasks_created_position_key;"
        " ALTER TABLE budgets DROP CONSTRAINT budgets_pkey;"
        # The right name is not enough.
        " CREATE INDEX operations_by_state ON operations (fencing_token, state);"
        " UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'job_runs_by_job'::regclass"
    )
    lost = [index.name for index in await missing_indexes(connection, SCHEMA)]
    assert lost == [
        *("budgets_pkey", "job_runs_by_job", "operations_by_state", "squad_messages_from"),
        *("squad_messages_task", "squad_tasks_created_position_key"),
    ]
    assert (await rebuild(database, SCHEMA)).lost == ()
    assert await fetch_value(connection, shape) == before
    assert await missing_indexes(connection, SCHEMA) == []


async def test_dropped_primary_key_is_recreated_and_duplicate_rows_removed(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=5)
    await connection.execute("ALTER TABLE squad_agents DROP CONSTRAINT squad_agents_pkey")
    await connection.execute("INSERT INTO squad_agents SELECT * FROM squad_agents")
    await connection.execute("ALTER TABLE budgets DROP CONSTRAINT budgets_pkey")
    await rebuild(database, SCHEMA, [agents, budgets])
    definition = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = "
    assert await fetch_value(connection, f"{definition}'squad_agents'::regclass") == "PRIMARY KEY (name)"
    assert await fetch_value(connection, f"{definition}'budgets'::regclass") == "PRIMARY KEY (day, agent)"
    assert await compare(database, SCHEMA) == []


async def test_views_indexes_grants_and_policies_on_a_table_are_kept(
    database: str, connection: Connection
) -> None:
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    await project(database)
    await connection.execute("CREATE VIEW loud AS SELECT upper(message) AS message FROM squad_messages")
    await connection.execute("CREATE INDEX of_my_own ON squad_messages (message)")
    await connection.execute("GRANT SELECT ON squad_messages TO pg_monitor")
    await connection.execute("CREATE POLICY mine ON squad_messages USING (true)")
    await connection.execute("UPDATE squad_messages SET message = 'two'")
    await rebuild(database, SCHEMA)
    assert await fetch_value(connection, "SELECT message FROM loud") == "ONE"
    assert await fetch_value(connection, "SELECT to_regclass('of_my_own')::text") == "of_my_own"
    assert await fetch_value(
        connection, "SELECT has_table_privilege('pg_monitor', 'squad_messages', 'SELECT')"
    )
    assert await fetch_value(connection, "SELECT count(*) FROM pg_policy WHERE polname = 'mine'") == 1


@pytest.mark.parametrize("unknown", [{"schema_version": 9}, {"type": "from_the_future"}], ids=str)
async def test_unknown_event_fails_the_rebuild_and_leaves_the_tables_unchanged(
    database: str, connection: Connection, unknown: dict[str, Any]
) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"), message_sent("one"))
    await project(database)
    await connection.execute("UPDATE squad_messages SET message = 'tampered'")
    await log_writer.append(agent_registered("bob"), **unknown)
    before = await projection_states(connection)
    with pytest.raises(UnknownEventType, match=r"v\d at position 3$") as raised:
        await rebuild(database, SCHEMA)
    assert raised.value.position == 3
    assert await projection_states(connection) == before
    assert await fetch_value(connection, "SELECT message FROM squad_messages") == "tampered"


async def test_tables_beyond_the_end_of_the_log_are_left_unchanged(
    database: str, connection: Connection
) -> None:
    """As when a restored backup lacks the end of the log."""
    await LogWriter(connection).append(agent_registered("alice"))
    await project(database)
    await connection.execute("UPDATE projections SET position = 3 WHERE name = 'agents'")
    before = await projection_states(connection)
    with pytest.raises(LogBroken, match="position 2 is missing"):
        await rebuild(database, SCHEMA)
    assert await projection_states(connection) == before


async def test_second_concurrent_rebuild_is_refused(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "LOCK_TIMEOUT_SECONDS", 0.2)
    await LogWriter(connection).append(agent_registered("alice"))
    await connection.execute("BEGIN")
    await connection.execute("LOCK TABLE projections")
    first = asyncio.create_task(rebuild(database, SCHEMA))
    await eventually(partial(_waits_for_a_lock, database))
    with pytest.raises(StoreBusy, match="another replay is in progress"):
        await rebuild(database, SCHEMA)
    await connection.execute("COMMIT")
    assert (await first).position == 1


async def _waits_for_a_lock(dsn: str) -> bool:
    async with connected(dsn) as connection:
        return bool(
            await fetch_value(
                connection,
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                " AND application_name = 'squad replay'",
            )
        )


async def test_rebuild_fails_without_changes_while_its_rows_are_locked(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "_LOCK_MILLISECONDS", 50)
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    await project(database)
    await connection.execute("UPDATE squad_messages SET message = 'tampered'")
    await connection.execute("BEGIN")
    await connection.execute("SELECT FROM squad_messages FOR UPDATE")
    with pytest.raises(StoreBusy):
        await rebuild(database, SCHEMA)
    await connection.execute("COMMIT")
    assert await fetch_value(connection, "SELECT message FROM squad_messages") == "tampered"
    await rebuild(database, SCHEMA)
    assert await fetch_value(connection, "SELECT message FROM squad_messages") == "one"


async def test_failed_swap_is_retried_from_the_position_before_it(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=6).submit_commands(writer, 200, at_once=20)
    await project(database)
    # Everything is folded in the swap, whose first attempts are rolled back.
    failures = iter(range(3))

    async def fail_at_first(*args: Any) -> Any:
        if next(failures, None) is not None:
            raise StoreBusy("somebody holds it")
        return await swap.replace(*args)

    monkeypatch.setattr(rebuilding, "replace", fail_at_first)
    await connection.execute("TRUNCATE squad_messages, operations")
    await rebuild(database, SCHEMA)
    assert next(failures, None) is None
    assert await compare(database, SCHEMA) == []


async def test_swap_is_kept_and_not_repeated_when_counting_its_rows_fails(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=6).submit_commands(writer, 200, at_once=20)
    await project(database)
    # Everything is folded in the swap, and would be folded twice.
    failures = iter(range(1))

    async def fail_at_first(*args: Any) -> Any:
        if next(failures, None) is not None:
            raise StoreBusy("canceling statement due to user request")
        return await swap.folded_rows(*args)

    monkeypatch.setattr(rebuilding, "folded_rows", fail_at_first)
    generation: int = await fetch_value(connection, "SELECT max(generation) FROM projections")
    await connection.execute("TRUNCATE squad_messages, operations")
    with pytest.raises(StoreBusy, match="user request"):
        await rebuild(database, SCHEMA)
    assert await compare(database, SCHEMA) == []
    assert await fetch_value(connection, "SELECT max(generation) FROM projections") == generation + 1


async def test_changes_after_the_differences_were_found_are_included_in_the_swap(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events arrive, the projector derives rows from wrong ones, and somebody tampers with rows again."""
    monkeypatch.setattr(rebuilding, "CLOSE_EVENTS", 0)
    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as writer,
    ):
        history = RandomHistory(seed=6)
        await history.submit_commands(writer, 200)
        await project(database)
        await connection.execute("UPDATE squad_agents SET role = 'tampered'")
        await connection.execute("UPDATE reservations SET agent = 'mallory' WHERE state = 'active'")

        async def find_and_continue(*args: Any) -> Any:
            found = await swap.find_differences(*args)
            await history.submit_commands(writer, 100)
            await eventually(partial(projected_to_head, database))
            await connection.execute("UPDATE squad_tasks SET title = 'tampered'")
            ack = "INSERT INTO squad_message_acks VALUES (%s, 'x', now(), 1)"
            await connection.execute(ack, (new_id(),))
            return found

        monkeypatch.setattr(rebuilding, "find_differences", find_and_continue)
        async with running(Projector(database, SCHEMA, listener.events).run()):
            await rebuild(database, SCHEMA)
            await history.submit_commands(writer, 20)
            await eventually(partial(projected_to_head, database))
    assert await compare(database, SCHEMA) == []


async def test_erased_data_is_not_restored(database: str, connection: Connection) -> None:
    async with running_writer(database, encrypt=True) as writer:
        kept = await submit(writer, message("still there"))
        sent = await submit(writer, message("mine alone"))
        await project(database)
        await submit(writer, do.ForgetSubject(subject=sent.reply["id"]))
        # No projector has applied that yet.
        await rebuild(database, SCHEMA)
    texts = dict(
        await (await connection.execute("SELECT id::text, message FROM squad_messages")).fetchall()
    )
    assert texts == {kept.reply["id"]: "still there", sent.reply["id"]: ERASED}
    assert await compare(database, SCHEMA) == []


@pytest.mark.parametrize("events", [1, 2, 3, 100])
async def test_messages_are_erased_whatever_the_page_size(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    """Messages are not cached, as they may have to be erased."""
    async with running_writer(database, encrypt=True) as writer:
        sent = [(await submit(writer, message(f"number {number}"))).reply["id"] for number in range(6)]
        for number in (0, 5, 4):
            await submit(writer, do.ForgetSubject(subject=sent[number]))
            await submit(writer, message("in between"))
    monkeypatch.setattr(pages.scan, "__defaults__", (events,))
    await rebuild(database, SCHEMA)
    found = await (await connection.execute("SELECT id::text, message FROM squad_messages")).fetchall()
    in_between = {text for id_, text in found if id_ not in sent}
    kept = ["number 1", "number 2", "number 3"]
    assert [dict(found)[id_] for id_ in sent] == [ERASED, *kept, ERASED, ERASED]
    assert (len(found), in_between) == (9, {"in between"})
    assert await compare(database, SCHEMA) == []


async def test_progress_is_reported_after_each_page(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill_all_tables(database, seed=7)
    monkeypatch.setattr(pages.scan, "__defaults__", (100,))
    reported: list[tuple[int, int]] = []
    rebuilt = await rebuild(
        database, SCHEMA, progress=lambda position, goal: reported.append((position, goal))
    )
    assert [position for position, _ in reported] == [*range(100, rebuilt.position, 100), rebuilt.position]
    assert {goal for _, goal in reported} == {rebuilt.position}


async def test_rebuild_leaves_no_tables_or_connections_behind(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=8)
    before = await fetch_value(connection, "SELECT count(*) FROM pg_class")
    await rebuild(database, SCHEMA)
    await eventually(partial(_has_disconnected, connection))
    assert await fetch_value(connection, "SELECT count(*) FROM pg_class") == before


async def _has_disconnected(connection: Connection) -> bool:
    return not await backend_pids(connection, "squad replay")


async def test_other_squads_in_the_database_are_not_touched(database: str, connection: Connection) -> None:
    await schema.apply(database, "squad_b")
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    async with connected(database, "squad_b") as other:
        await LogWriter(other).append(agent_registered("bob"))
        async with running(Projector(database, "squad_b", Hints()).run()):
            await eventually(partial(projected_to_head, database, "squad_b"))
        await other.execute("TRUNCATE squad_agents")
        before = await projection_states(other)
        await rebuild(database, SCHEMA)
        assert await projection_states(other) == before
        assert await fetch_value(other, "SELECT count(*) FROM squad_agents") == 0


async def test_role_that_owns_only_the_schema_may_rebuild_and_compare(
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
                await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
                await rebuild(as_tenant, SCHEMA)
                await connection.execute("DROP TABLE squad_agents")
                await rebuild(as_tenant, SCHEMA)
            assert await compare(as_tenant, SCHEMA) == []
        finally:
            await admin.execute(f"DROP OWNED BY {role}".encode())
            await admin.execute(f"DROP ROLE {role}".encode())


async def test_rebuild_notifies_the_projector_and_readers_of_the_tables(
    database: str, connection: Connection
) -> None:
    for channel in ("events", "projections"):
        await connection.execute(f'LISTEN "{SCHEMA}.{channel}"'.encode())
    await rebuild(database, SCHEMA)
    channels = [each.channel async for each in connection.notifies(timeout=10, stop_after=2)]
    assert sorted(channels) == [f"{SCHEMA}.events", f"{SCHEMA}.projections"]

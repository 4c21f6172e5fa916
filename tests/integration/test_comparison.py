"""The comparison finds and names everything in the read tables that does not follow from the log."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from psycopg.conninfo import make_conninfo

from eventstore import log, pages
from eventstore.errors import (
    LogBroken,
    LogNotUnderstood,
    StoreBusy,
    StoreUnavailable,
    TableMismatch,
    UnknownEventType,
)
from eventstore.listener import Hints
from projections import PROJECTIONS, comparison
from projections.comparison import Difference, compare
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
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.random_history import RandomHistory
from tests.support.table_tampering import TABLES, Tampering
from tests.support.tables import fill_all_tables, project
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection
    from projections.refold import Refold
    from service.writing.writer import Writer


@pytest.mark.parametrize("seed", range(3))
async def test_tables_of_a_random_history_match_the_log(database: str, seed: int) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed).submit_commands(writer, 200, at_once=20)
    await project(database)
    assert await compare(database, SCHEMA) == []


async def test_empty_tables_match_an_empty_log(database: str) -> None:
    async with running(Projector(database, SCHEMA, Hints()).run()):
        await eventually(partial(projected_to_head, database))
    assert await compare(database, SCHEMA) == []


async def test_changed_row_is_reported_for_every_column_of_every_table(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=1)
    tampering = await Tampering.of(connection)
    for index in range(max(len(table.columns) for table in TABLES)):
        changed = {}
        for table in TABLES:
            if index < len(table.columns) and table.columns[index] not in table.key:
                changed[table.name] = await tampering.change(table, table.columns[index])
        found = {difference.table: difference for difference in await compare(database, SCHEMA)}
        assert found.keys() == changed.keys()
        for name, change in changed.items():
            difference = found[name]
            assert difference.kind == "changed"
            assert (difference.key, difference.column) == (change.key, change.column)
            assert (difference.found, difference.expected) == (change.after, change.before)
            assert (difference.changed, difference.missing, difference.extra) == (1, 0, 0)
        await tampering.undo()
    assert await compare(database, SCHEMA) == []


async def test_missing_row_is_reported_for_every_table(database: str, connection: Connection) -> None:
    await fill_all_tables(database, seed=2)
    tampering = await Tampering.of(connection)
    removed = {table.name: await tampering.remove(table) for table in TABLES}
    differences = await compare(database, SCHEMA)
    assert {difference.table: difference.key for difference in differences} == removed
    for difference in differences:
        assert (difference.kind, difference.missing) == ("missing", 1)
        assert difference.changed == difference.extra == 0


async def test_extra_row_is_reported_for_every_table(database: str, connection: Connection) -> None:
    await fill_all_tables(database, seed=3)
    tampering = await Tampering.of(connection)
    added = {table.name: await tampering.add(table) for table in TABLES}
    differences = await compare(database, SCHEMA)
    assert {difference.table: difference.key for difference in differences} == added
    for difference in differences:
        assert (difference.kind, difference.extra) == ("extra", 1)
        assert difference.changed == difference.missing == 0


async def test_duplicate_rows_are_reported_when_the_primary_key_was_dropped(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=4)
    await connection.execute("ALTER TABLE squad_agents DROP CONSTRAINT squad_agents_pkey")
    await connection.execute("INSERT INTO squad_agents SELECT * FROM squad_agents WHERE name = 'alice'")
    [difference] = await compare(database, SCHEMA)
    assert (difference.kind, difference.table) == ("doubled", "squad_agents")
    assert "duplicate rows: 1" in str(difference)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ALTER TABLE squad_tasks DROP COLUMN description", "has no column description"),
        (
            "ALTER TABLE squad_tasks ALTER COLUMN position TYPE text",
            "has the column position as text instead of bigint",
        ),
        (
            "ALTER TABLE squad_tasks ADD COLUMN more integer; UPDATE squad_tasks SET more = 1;"
            " ALTER TABLE squad_tasks ALTER COLUMN more SET NOT NULL",
            "has an extra column, more, that must be filled",
        ),
        (
            "ALTER TABLE squad_tasks RENAME TO tasks_before; CREATE VIEW squad_tasks AS TABLE tasks_before",
            "is not a plain table",
        ),
    ],
)
async def test_incompatible_table_is_reported_with_others_and_refused_by_rebuild(
    database: str, connection: Connection, change: str, problem: str
) -> None:
    await fill_all_tables(database, seed=2)
    await connection.execute(f"{change}; DELETE FROM squad_agents".encode())
    [emptied, other] = await compare(database, SCHEMA)
    assert (emptied.table, emptied.kind) == ("squad_agents", "missing")
    assert (other.table, other.kind, other.detail) == ("squad_tasks", "another table", f"it {problem}")
    with pytest.raises(
        TableMismatch, match=f"squad_tasks {problem}; once its owner has dropped it, a replay"
    ):
        await rebuild(database, SCHEMA)
    assert len(await compare(database, SCHEMA)) == 2


async def test_extra_column_with_a_default_is_accepted_by_compare_and_rebuild(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=2)
    await connection.execute("ALTER TABLE squad_tasks ADD COLUMN note text DEFAULT 'x' NOT NULL")
    assert await compare(database, SCHEMA) == []
    await connection.execute("DELETE FROM squad_tasks")
    await rebuild(database, SCHEMA)
    assert await compare(database, SCHEMA) == []


async def test_missing_table_is_reported_with_the_other_differences(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=2)
    await connection.execute("DROP TABLE squad_tasks; DELETE FROM squad_agents")
    [emptied, dropped] = await compare(database, SCHEMA)
    assert (emptied.table, emptied.kind) == ("squad_agents", "missing")
    assert (dropped.table, dropped.kind) == ("squad_tasks", "no table")
    assert str(dropped) == f"squad_tasks at position {emptied.position}: it does not exist"


async def test_first_bad_row_is_reported_with_the_number_of_bad_rows(
    database: str, connection: Connection
) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(
        agent_registered("alice"), agent_registered("bob"), agent_registered("carol"), message_sent("hello")
    )
    await project(database)
    await connection.execute("UPDATE squad_agents SET role = 'boss' WHERE name IN ('bob', 'carol')")
    await connection.execute("DELETE FROM squad_agents WHERE name = 'alice'")
    await connection.execute("UPDATE squad_messages SET to_agent = 'bob', message = %s", ("x" * 500,))
    first, second = map(str, await compare(database, SCHEMA))
    assert first == ("squad_agents at position 4: the row name='alice' is missing (2 changed, 1 missing)")
    assert "has to_agent 'bob', the log says null (1 changed)" in second


async def test_only_the_given_projections_are_compared(database: str, connection: Connection) -> None:
    await LogWriter(connection).append(agent_registered("alice"), message_sent("hello"))
    await project(database)
    await connection.execute("TRUNCATE squad_agents")
    assert await compare(database, SCHEMA, [messages]) == []
    [difference] = await compare(database, SCHEMA)
    assert difference.projection == "agents"


async def test_tables_are_compared_as_of_their_position_while_writes_continue(database: str) -> None:
    stop = asyncio.Event()

    async with (
        running_listener(database) as listener,
        running(Projector(database, SCHEMA, listener.events).run()),
        running_writer(database, hints=listener.events) as writer,
        connected(database) as connection,
    ):
        load = asyncio.gather(*(RandomHistory(seed).submit_until(stop, writer) for seed in range(8)))
        for _ in range(5):
            before = await log.head_position(connection)
            assert await compare(database, SCHEMA) == []
            assert await log.head_position(connection) > before
        stop.set()
        await load


async def test_each_projection_is_compared_as_of_its_own_position(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=5)
    await connection.execute("UPDATE projections SET position = 0 WHERE name = 'messages'")
    await connection.execute("TRUNCATE squad_messages, squad_message_acks")
    assert await compare(database, SCHEMA) == []


async def test_stopped_projection_is_reported_and_compared_up_to_where_it_stopped(
    database: str, connection: Connection
) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"), message_sent("one"))
    await project(database)
    await connection.execute(
        "UPDATE projections SET failed_position = 3, error = 'ArithmeticError: no' WHERE name = 'messages'"
    )
    [stopped] = await compare(database, SCHEMA)
    assert str(stopped) == "messages: it stopped before position 3: ArithmeticError: no"
    await connection.execute("TRUNCATE squad_messages")
    assert [each.kind for each in await compare(database, SCHEMA)] == ["stopped", "missing"]


async def test_projection_folded_by_another_version_is_reported_and_not_compared(
    database: str, connection: Connection
) -> None:
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    await project(database)
    await connection.execute("TRUNCATE squad_messages")
    newer = replace(messages, fold_version=messages.fold_version + 1)
    [difference] = await compare(database, SCHEMA, [newer])
    version = messages.fold_version
    assert str(difference) == f"messages: it was folded by version {version}, this is version {version + 1}"


async def test_projections_that_were_never_folded_are_reported(
    database: str, connection: Connection
) -> None:
    await LogWriter(connection).append(agent_registered("alice"))
    differences = await compare(database, SCHEMA)
    assert [(each.kind, each.projection) for each in differences] == [
        ("never folded", projection.name) for projection in PROJECTIONS
    ]


async def test_projection_beyond_the_end_of_the_log_is_reported(
    database: str, connection: Connection
) -> None:
    await LogWriter(connection).append(agent_registered("alice"))
    await project(database)
    await connection.execute("UPDATE projections SET position = 9 WHERE name = 'agents'")
    [difference] = await compare(database, SCHEMA)
    assert str(difference) == "agents: it claims to be at position 9, and the log ends at 1"


@pytest.mark.parametrize(
    ("unknown", "named"),
    [
        ({"schema_version": 9}, "agent_registered v9 at position 3"),
        ({"type": "from_the_future"}, "from_the_future v1 at position 3"),
    ],
)
async def test_comparison_fails_with_type_version_and_position_of_an_unknown_event(
    database: str, connection: Connection, unknown: dict[str, Any], named: str
) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"), message_sent("fine"))
    await log_writer.append(agent_registered("bob"), **unknown)
    async with running(Projector(database, SCHEMA, Hints()).run()):
        await eventually(partial(_have_all_stopped, connection))
    # Those that stopped before the event need not read it; those that claim to have applied it must.
    assert {each.kind for each in await compare(database, SCHEMA)} == {"stopped"}
    await connection.execute("UPDATE projections SET position = 3")
    with pytest.raises(UnknownEventType, match=named):
        await compare(database, SCHEMA)


async def _have_all_stopped(connection: Connection) -> bool:
    cursor = await connection.execute("SELECT count(failed_position) FROM projections")
    row = await cursor.fetchone()
    return row == (len(PROJECTIONS),)


async def test_comparison_fails_when_an_event_is_missing_from_the_log(
    database: str, connection: Connection
) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"), message_sent("one"), message_sent("two"))
    await project(database)
    await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
    await connection.execute("DELETE FROM events WHERE position = 2")
    with pytest.raises(LogBroken, match="position 2 is missing"):
        await compare(database, SCHEMA)


async def test_comparison_fails_when_an_event_contradicts_earlier_ones(
    database: str, connection: Connection
) -> None:
    await LogWriter(connection).append(
        agent_registered("alice"), message_sent("by nobody we know", agent="mallory")
    )
    async with running(Projector(database, SCHEMA, Hints()).run()):
        await eventually(partial(_has_reached, connection, "messages", 2))
    await connection.execute("UPDATE projections SET position = 2, failed_position = NULL")
    with pytest.raises(
        LogNotUnderstood, match="at position 2, MissingRow: squad_agents has no row 'mallory'"
    ):
        await compare(database, SCHEMA)


async def _has_reached(connection: Connection, name: str, position: int) -> bool:
    cursor = await connection.execute("SELECT position FROM projections WHERE name = %s", (name,))
    return await cursor.fetchone() == (position,)


async def test_comparison_fails_when_a_projection_is_set_back_meanwhile(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    await project(database)
    catch_up = comparison._catch_up

    async def catch_up_and_set_back(refold: Refold, schema: str) -> None:
        await catch_up(refold, schema)
        await connection.execute("UPDATE projections SET position = 1 WHERE name = 'messages'")

    monkeypatch.setattr(comparison, "_catch_up", catch_up_and_set_back)
    with pytest.raises(StoreBusy, match="messages was set back to 1"):
        await compare(database, SCHEMA)


async def test_comparison_waits_for_tables_with_a_pending_erasure(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows still hold what the log no longer reveals; that is not a difference."""
    compared_once, compare_once = asyncio.Event(), comparison._compare

    async def compare_and_signal(*args: Any, **more: Any) -> list[Difference]:
        try:
            return await compare_once(*args, **more)
        finally:
            compared_once.set()

    monkeypatch.setattr(comparison, "_compare", compare_and_signal)
    async with running_writer(database, encrypt=True) as writer:
        sent = await submit(writer, message("mine alone"))
        await project(database)
        await submit(writer, do.ForgetSubject(subject=sent.reply["id"]))
        comparing = asyncio.create_task(compare(database, SCHEMA))
        await compared_once.wait()
        async with running(Projector(database, SCHEMA, Hints()).run()):
            assert await comparing == []
    assert await compare(database, SCHEMA) == []


async def test_wait_restarts_at_each_erasure_however_long_the_fold_takes(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, catch_ups, catch_up = 0.0, 0, comparison._catch_up

    async def catch_up_slowly(refold: Refold, schema: str) -> None:
        nonlocal now, catch_ups
        catch_ups += 1
        now += 2 * comparison.ERASURE_TIMEOUT_SECONDS
        if catch_ups > 1:
            await project(database)
        if catch_ups < len(sent):
            await submit(writer, do.ForgetSubject(subject=sent[catch_ups].reply["id"]))
        await catch_up(refold, schema)

    monkeypatch.setattr(comparison, "monotonic", lambda: now)
    monkeypatch.setattr(comparison, "_catch_up", catch_up_slowly)
    async with running_writer(database, encrypt=True) as writer:
        sent = [await submit(writer, message(str(number))) for number in range(4)]
        await project(database)
        await submit(writer, do.ForgetSubject(subject=sent[0].reply["id"]))
        assert await compare(database, SCHEMA) == []
    assert catch_ups == len(sent)


async def test_erasure_still_pending_after_the_timeout_is_reported(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "ERASURE_TIMEOUT_SECONDS", 0.0)
    async with running_writer(database, encrypt=True) as writer:
        sent = await submit(writer, message("mine alone"))
        await project(database)
        forgotten = await submit(writer, do.ForgetSubject(subject=sent.reply["id"]))
    reported = {each.projection: str(each) for each in await compare(database, SCHEMA)}
    assert reported.keys() == {"messages", "emails"}
    at = forgotten.position
    assert reported["messages"] == f"messages: it has yet to erase what was forgotten at position {at}"


async def test_progress_is_reported_after_each_page(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill_all_tables(database, seed=6)
    monkeypatch.setattr(pages.scan, "__defaults__", (100,))
    reported: list[tuple[int, int]] = []
    async with connected(database) as connection:
        head = await log.head_position(connection)
    await compare(database, SCHEMA, progress=lambda position, goal: reported.append((position, goal)))
    assert [position for position, _ in reported] == [*range(100, head, 100), head]
    assert {goal for _, goal in reported} == {head}


async def test_role_that_may_only_read_may_compare(database: str, connection: Connection) -> None:
    await fill_all_tables(database, seed=8)
    role = f"auditor_{uuid4().hex}"
    await connection.execute(f"CREATE ROLE {role}".encode())
    try:
        await connection.execute(f"GRANT USAGE ON SCHEMA squad TO {role}".encode())
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA squad TO {role}".encode())
        assert await compare(make_conninfo(database, options=f"-c role={role}"), SCHEMA) == []
    finally:
        await connection.execute(f"DROP OWNED BY {role}".encode())
        await connection.execute(f"DROP ROLE {role}".encode())


async def test_comparison_leaves_no_tables_or_connections_behind(
    database: str, connection: Connection
) -> None:
    await fill_all_tables(database, seed=7)
    before = await (await connection.execute("SELECT count(*) FROM pg_class")).fetchone()
    assert await compare(database, SCHEMA) == []
    await eventually(partial(_has_disconnected, connection))
    assert await (await connection.execute("SELECT count(*) FROM pg_class")).fetchone() == before


async def _has_disconnected(connection: Connection) -> bool:
    return not await backend_pids(connection, "squad comparison")


async def test_unreachable_database_is_reported(database: str) -> None:
    with pytest.raises(StoreUnavailable):
        await compare("host=127.0.0.1 port=1", SCHEMA)


def test_difference_is_formatted_as_one_line_whatever_it_holds() -> None:
    difference = Difference(
        "changed", "messages", 7, "squad_messages", {"id": "a"}, "message", "two\nlines", None, changed=1200
    )
    assert str(difference) == (
        "squad_messages at position 7: the row id='a' has message 'two\\nlines', the log says null"
        " (1,200 changed)"
    )


class TestDuringErasure:
    """The tables briefly hold what the log no longer reveals; that is not a difference."""

    @pytest.fixture
    async def writer(self, database: str) -> AsyncIterator[Writer]:
        async with running_writer(database, encrypt=True) as started:
            await submit(started, do.LogEmail(gmail_message_id="g-1", from_email="zoe@example.org"))
            await project(database)
            yield started

    async def test_comparison_waits_for_the_tables(self, writer: Writer, database: str) -> None:
        await submit(writer, do.ForgetSubject(subject="zoe@example.org"))
        comparing = asyncio.create_task(compare(database, SCHEMA))
        await project(database)
        assert await comparing == []

    async def test_row_that_keeps_erased_data_is_reported(
        self, writer: Writer, database: str, connection: Connection
    ) -> None:
        await submit(writer, do.ForgetSubject(subject="zoe@example.org"))
        await project(database)
        await connection.execute("UPDATE email_logs SET from_email = 'zoe@example.org'")
        [difference] = await compare(database, SCHEMA)
        assert (difference.table, difference.column) == ("email_logs", "from_email")

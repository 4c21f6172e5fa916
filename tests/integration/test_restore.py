"""The state at a start: whatever the tables and snapshots hold, it equals the fold of the whole log."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from psycopg.pq import TransactionStatus

from eventstore import log, sealing
from eventstore.events import BudgetDayReset, TokensReserved
from eventstore.listener import Hints
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS
from projections.projector import Projector
from service import commands as do
from service.history import folding, snapshots
from service.history import restore as restoring
from service.history.folding import fold_page
from service.history.restore import catch_up, restore
from service.history.time_travel import state_at
from service.memory.squad import Squad
from tests.support.components import running, running_writer, submit
from tests.support.log import LogWriter, agent_registered, new_id, stored_log
from tests.support.random_history import RandomHistory
from tests.support.verify import assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection
    from eventstore.recorded import Head, Recorded
    from service.writing.writer import Writer

COMMANDS = 300


@asynccontextmanager
async def _projecting(database: str) -> AsyncIterator[None]:
    """Bring the tables to the head of the log; after the block, no projector is running."""
    async with running(Projector(database, "squad", Hints()).run()):
        await eventually(partial(projected_to_head, database))
        yield


async def _folded_from_zero(connection: Connection) -> Squad:
    """Fold the log as one page, so that an entity that is reopened in it never leaves memory."""
    squad = Squad()
    stored = await stored_log(connection)
    fold_page(squad, await sealing.reveal(connection, stored, erased_types=sealing.UNUSED_BY_STATE))
    return squad


def _assert_same(one: Squad, other: Squad) -> None:
    assert one.head == other.head
    for name, rows in one.tables.items():
        assert rows == other.tables[name], name
    assert one.versions == other.versions
    assert one.holders == other.holders
    assert one.gmail_ids == other.gmail_ids


async def _assert_restored(connection: Connection, writer: Writer) -> None:
    restored = await restore(connection)
    _assert_same(restored, await _folded_from_zero(connection))
    _assert_same(restored, writer.squad)


@pytest.mark.nothing_sealed
async def test_empty_log_restores_an_empty_state(connection: Connection) -> None:
    _assert_same(await restore(connection), Squad())


async def test_state_is_restored_from_tables_at_the_head(
    writer: Writer, connection: Connection, database: str
) -> None:
    await RandomHistory(seed=11).submit_commands(writer, COMMANDS, at_once=20)
    async with _projecting(database):
        await _assert_restored(connection, writer)
    assert await assert_tables_equal_fold(database) > 100


async def test_state_is_restored_from_tables_behind_the_head(
    writer: Writer, connection: Connection, database: str
) -> None:
    history = RandomHistory(seed=12)
    await history.submit_commands(writer, COMMANDS, at_once=20)
    async with _projecting(database):
        pass
    await history.submit_commands(writer, COMMANDS, at_once=20)
    await _assert_restored(connection, writer)


async def test_state_is_restored_when_tables_were_never_filled(
    writer: Writer, connection: Connection
) -> None:
    await RandomHistory(seed=13).submit_commands(writer, COMMANDS, at_once=20)
    await _assert_restored(connection, writer)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE projections SET position = position - 1 WHERE name = 'budgets'",
        "DELETE FROM projections WHERE name = 'agents'",
        "UPDATE projections SET fold_version = 99 WHERE name = 'tasks'",
        "UPDATE projections SET position = position + 1000",
        "INSERT INTO projections (name, position, fold_version) VALUES ('from the future', 1, 1)",
    ],
)
async def test_tables_are_not_used_when_they_do_not_reflect_one_moment_of_the_log(
    writer: Writer, connection: Connection, database: str, damage: str
) -> None:
    await RandomHistory(seed=14).submit_commands(writer, COMMANDS, at_once=20)
    async with _projecting(database):
        pass
    # If a table is used in spite of the damage, the comparison fails.
    await connection.execute("TRUNCATE squad_agents, operations, budget_days, policy")
    await connection.execute(damage.encode())
    await _assert_restored(connection, writer)


@pytest.mark.parametrize(
    "lag",
    [
        "DELETE FROM projections WHERE name = 'usage'",
        "UPDATE projections SET position = 0, fold_version = 99 WHERE name = 'messages'",
    ],
)
async def test_tables_are_used_when_one_that_decisions_do_not_need_is_still_being_filled(
    writer: Writer, connection: Connection, database: str, lag: str
) -> None:
    await RandomHistory(seed=15).submit_commands(writer, COMMANDS, at_once=20)
    async with _projecting(database):
        pass
    # Shows where the state comes from.
    await connection.execute("UPDATE policy SET daily_tokens = 7")
    await connection.execute(lag.encode())
    assert (await restore(connection)).policy.daily_tokens == 7


@pytest.mark.nothing_sealed
async def test_past_budget_day_with_reserved_tokens_is_restored_from_tables(
    connection: Connection, database: str
) -> None:
    """Settling or releasing them later counts on that day."""
    days = [datetime(2026, 3, day, tzinfo=UTC) for day in range(1, 5)]
    resets = [
        BudgetDayReset(
            day=start.date(),
            starts_at=start,
            ends_at=start + timedelta(days=1),
            total=100,
            previous_day=previous.date() if previous else None,
            previous_used=0,
            previous_total=100,
            previous_agents={},
        )
        for previous, start in zip([None, *days], days, strict=False)
    ]
    reserved = TokensReserved(
        day=resets[1].day, reservation_id=new_id(), agent="alice", tokens=7, expires_at=days[3]
    )
    await LogWriter(connection).append(agent_registered("alice"), *resets[:2], reserved, *resets[2:])
    async with _projecting(database):
        pass
    restored = await restore(connection)
    _assert_same(restored, await _folded_from_zero(connection))
    reserved_by_day = {row.day: row.reserved for row in restored.all(BUDGET_DAYS)}
    assert reserved_by_day == {resets[1].day: 7, resets[3].day: 0}


async def test_catch_up_passes_on_all_events_in_order(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await RandomHistory(seed=15).submit_commands(writer, 50)
    monkeypatch.setattr(log, "PAGE_EVENTS", 7)
    passed_on: list[Recorded] = []
    await catch_up(connection, Squad(), passed_on.extend)
    assert [event.position for event in passed_on] == list(range(1, writer.squad.head.position + 1))


async def test_restored_state_decides_like_the_original(writer: Writer, database: str) -> None:
    history = RandomHistory(seed=16)
    await history.submit_commands(writer, COMMANDS, at_once=20)
    held = await submit(
        writer, do.StartOperation(agent="alice", action="reply", resources={"emailId": "held"})
    )
    email = do.LogEmail(gmail_message_id="gmail-once", from_email="a@example.org")
    await submit(writer, email)
    async with _projecting(database):
        pass
    async with running_writer(database) as restored:
        claim = do.StartOperation(agent="bob", action="reply", resources={"emailId": "held"})
        conflict = await submit(restored, claim)
        assert conflict.refusal is not None
        assert conflict.refusal.extra["conflict"]["operation_id"] == held.reply["id"]
        repeat = await submit(restored, email)
        assert repeat.refusal is not None
        assert repeat.refusal.code == "email_exists"
        await history.submit_commands(restored, COMMANDS)


# Snapshots ----------------------------------------------------------------------------------------------


async def _store_false_snapshot(connection: Connection, position: int) -> str:
    """Store a snapshot that gives all agents a false role, and return the role: it shows what was used."""
    squad = await state_at(connection, position)
    squad.tables[AGENTS.name] = {
        name: agent.replaced(role="liar") for name, agent in squad.tables[AGENTS.name].items()
    }
    await snapshots.store(connection, squad, position)
    return "liar"


async def _roles(connection: Connection) -> set[str]:
    return {agent.role for agent in (await restore(connection)).all(AGENTS)}


async def test_snapshot_is_used_when_tables_were_never_filled(
    writer: Writer, connection: Connection
) -> None:
    await RandomHistory(seed=17).submit_commands(writer, COMMANDS, at_once=20)
    head = writer.squad.head.position
    await snapshots.store(connection, await state_at(connection, head - 40), head)
    await _assert_restored(connection, writer)
    assert await _store_false_snapshot(connection, head) in await _roles(connection)


async def test_snapshot_is_used_when_it_is_about_as_near_the_head_as_the_tables(
    writer: Writer, connection: Connection, database: str
) -> None:
    await RandomHistory(seed=18).submit_commands(writer, COMMANDS, at_once=20)
    async with _projecting(database):
        pass
    head = writer.squad.head.position
    await snapshots.store(connection, await state_at(connection, head - 40), head)
    await _assert_restored(connection, writer)
    assert await _store_false_snapshot(connection, head - 10) in await _roles(connection)


async def test_snapshot_is_unpacked_outside_of_transactions(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends sessions that stay idle in a transaction."""
    await RandomHistory(seed=17).submit_commands(writer, COMMANDS, at_once=20)
    head = writer.squad.head.position
    await snapshots.store(connection, await state_at(connection, head), head)
    seen: list[TransactionStatus] = []
    original = snapshots.unpack

    async def unpack(state: bytes, place: Head) -> Squad:
        seen.append(connection.info.transaction_status)
        return await original(state, place)

    monkeypatch.setattr(snapshots, "unpack", unpack)
    await _assert_restored(connection, writer)
    assert seen == [TransactionStatus.IDLE]


async def test_snapshot_is_not_used_when_it_is_far_behind_the_tables(
    writer: Writer, connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await RandomHistory(seed=19).submit_commands(writer, COMMANDS, at_once=20)
    async with _projecting(database):
        pass
    false_role = await _store_false_snapshot(connection, writer.squad.head.position - 40)
    monkeypatch.setattr(restoring, "MAX_FOLD_EVENTS", 20)
    assert false_role not in await _roles(connection)
    await _assert_restored(connection, writer)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE snapshots SET state = set_byte(state, 50, 255 - get_byte(state, 50))",
        "UPDATE snapshots SET position = position - 1",
        "UPDATE snapshots SET position = position + 100000",
        "TRUNCATE snapshots",
    ],
)
async def test_log_is_folded_when_the_snapshot_is_unusable(
    writer: Writer, connection: Connection, damage: str
) -> None:
    await RandomHistory(seed=20).submit_commands(writer, COMMANDS, at_once=20)
    false_role = await _store_false_snapshot(connection, writer.squad.head.position - 5)
    await connection.execute(damage.encode())
    assert false_role not in await _roles(connection)
    await _assert_restored(connection, writer)


async def test_long_log_is_folded_from_its_beginning_only_once(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "distance", lambda _: 100)
    monkeypatch.setattr(folding, "PAGE_EVENTS", 20)
    await RandomHistory(seed=21).submit_commands(writer, COMMANDS, at_once=20)
    await _assert_restored(connection, writer)
    taken = await snapshots.positions(connection)
    assert taken == list(range(100, writer.squad.head.position + 1, 100))
    await connection.execute("UPDATE snapshots SET taken_at = 'epoch'")
    await _assert_restored(connection, writer)
    cursor = await connection.execute("SELECT count(*) FROM snapshots WHERE taken_at > 'epoch'")
    assert await cursor.fetchone() == (0,)


async def test_state_is_restored_when_no_snapshot_can_be_stored(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "distance", lambda _: 100)
    monkeypatch.setattr(folding, "PAGE_EVENTS", 20)
    await RandomHistory(seed=22).submit_commands(writer, COMMANDS, at_once=20)
    await connection.execute("ALTER TABLE snapshots ADD CHECK (position < 0)")
    await _assert_restored(connection, writer)
    await connection.execute("SET default_transaction_read_only = on")
    await _assert_restored(connection, writer)

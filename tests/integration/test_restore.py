"""The decision state at a start: whatever the tables hold, it is the fold of the log from zero."""

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
from tests.support.log import LogWriter, joined, new_id, stored_log
from tests.support.parts import running, running_writer, submit
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
    """Tables at the head of the log, and nobody who keeps them there after the block."""
    async with running(Projector(database, "squad", Hints()).run()):
        await eventually(partial(projected_to_head, database))
        yield


async def _folded_from_zero(connection: Connection) -> Squad:
    """As one page: whatever was opened again in it never left memory."""
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


async def test_from_an_empty_log_nothing_is_restored(connection: Connection) -> None:
    _assert_same(await restore(connection), Squad())


async def test_from_tables_at_the_head(writer: Writer, connection: Connection, database: str) -> None:
    await RandomHistory(seed=11).live(writer, COMMANDS)
    async with _projecting(database):
        await _assert_restored(connection, writer)
    assert await assert_tables_equal_fold(database) > 100


async def test_from_tables_that_are_behind(writer: Writer, connection: Connection, database: str) -> None:
    life = RandomHistory(seed=12)
    await life.live(writer, COMMANDS)
    async with _projecting(database):
        pass
    await life.live(writer, COMMANDS)
    await _assert_restored(connection, writer)


async def test_from_tables_that_nobody_ever_filled(writer: Writer, connection: Connection) -> None:
    await RandomHistory(seed=13).live(writer, COMMANDS)
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
async def test_from_tables_that_are_not_one_moment_of_this_log(
    writer: Writer, connection: Connection, database: str, damage: str
) -> None:
    await RandomHistory(seed=14).live(writer, COMMANDS)
    async with _projecting(database):
        pass
    # So that a table that is used all the same would show.
    await connection.execute("TRUNCATE squad_agents, operations, budget_days, policy")
    await connection.execute(damage.encode())
    await _assert_restored(connection, writer)


async def test_from_tables_with_tokens_that_are_still_reserved_on_a_day_that_is_over(
    connection: Connection, database: str
) -> None:
    """Whatever becomes of them counts on that day."""
    days = [datetime(2026, 3, day, tzinfo=UTC) for day in range(1, 5)]
    begun = [
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
        day=begun[1].day, reservation_id=new_id(), agent="alice", tokens=7, expires_at=days[3]
    )
    await LogWriter(connection).append(joined("alice"), *begun[:2], reserved, *begun[2:])
    async with _projecting(database):
        pass
    restored = await restore(connection)
    _assert_same(restored, await _folded_from_zero(connection))
    kept = {row.day: row.reserved for row in restored.all(BUDGET_DAYS)}
    assert kept == {begun[1].day: 7, begun[3].day: 0}


async def test_the_pages_that_follow_the_tables_are_told_in_order(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await RandomHistory(seed=15).live(writer, 50)
    monkeypatch.setattr(log, "PAGE_EVENTS", 7)
    told: list[Recorded] = []
    await catch_up(connection, Squad(), told.extend)
    assert [event.position for event in told] == list(range(1, writer.squad.head.position + 1))


async def test_a_restored_squad_decides_like_the_one_that_lived_through_it(
    writer: Writer, database: str
) -> None:
    life = RandomHistory(seed=16)
    await life.live(writer, COMMANDS)
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
        await life.live(restored, COMMANDS)


# Snapshots ----------------------------------------------------------------------------------------------


async def _lie(connection: Connection, position: int) -> str:
    """Puts away a squad that was not so, to see where it is used: a role that nobody has."""
    squad = await state_at(connection, position)
    squad.tables[AGENTS.name] = {
        name: agent.replaced(role="liar") for name, agent in squad.tables[AGENTS.name].items()
    }
    await snapshots.store(connection, squad, position)
    return "liar"


async def _roles(connection: Connection) -> set[str]:
    return {agent.role for agent in (await restore(connection)).all(AGENTS)}


async def test_from_a_snapshot_where_nobody_ever_filled_the_tables(
    writer: Writer, connection: Connection
) -> None:
    await RandomHistory(seed=17).live(writer, COMMANDS)
    head = writer.squad.head.position
    await snapshots.store(connection, await state_at(connection, head - 40), head)
    await _assert_restored(connection, writer)
    assert await _lie(connection, head) in await _roles(connection)


async def test_from_a_snapshot_that_is_as_near_as_the_tables(
    writer: Writer, connection: Connection, database: str
) -> None:
    await RandomHistory(seed=18).live(writer, COMMANDS)
    async with _projecting(database):
        pass
    head = writer.squad.head.position
    await snapshots.store(connection, await state_at(connection, head - 40), head)
    await _assert_restored(connection, writer)
    assert await _lie(connection, head - 10) in await _roles(connection)


async def test_a_snapshot_is_unpacked_outside_of_transactions_which_the_server_ends_that_stand_still(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await RandomHistory(seed=17).live(writer, COMMANDS)
    head = writer.squad.head.position
    await snapshots.store(connection, await state_at(connection, head), head)
    seen: list[TransactionStatus] = []
    really = snapshots.unpack

    async def unpack(state: bytes, place: Head) -> Squad:
        seen.append(connection.info.transaction_status)
        return await really(state, place)

    monkeypatch.setattr(snapshots, "unpack", unpack)
    await _assert_restored(connection, writer)
    assert seen == [TransactionStatus.IDLE]


async def test_not_from_a_snapshot_that_is_far_behind_the_tables(
    writer: Writer, connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await RandomHistory(seed=19).live(writer, COMMANDS)
    async with _projecting(database):
        pass
    lie = await _lie(connection, writer.squad.head.position - 40)
    monkeypatch.setattr(restoring, "MAX_FOLD_EVENTS", 20)
    assert lie not in await _roles(connection)
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
async def test_from_the_log_where_the_snapshot_is_no_good(
    writer: Writer, connection: Connection, damage: str
) -> None:
    await RandomHistory(seed=20).live(writer, COMMANDS)
    lie = await _lie(connection, writer.squad.head.position - 5)
    await connection.execute(damage.encode())
    assert lie not in await _roles(connection)
    await _assert_restored(connection, writer)


async def test_a_long_log_is_folded_from_its_beginning_only_once(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "distance", lambda _: 100)
    monkeypatch.setattr(folding, "PAGE_EVENTS", 20)
    await RandomHistory(seed=21).live(writer, COMMANDS)
    await _assert_restored(connection, writer)
    taken = await snapshots.positions(connection)
    assert taken == list(range(100, writer.squad.head.position + 1, 100))
    await connection.execute("UPDATE snapshots SET taken_at = 'epoch'")
    await _assert_restored(connection, writer)
    cursor = await connection.execute("SELECT count(*) FROM snapshots WHERE taken_at > 'epoch'")
    assert await cursor.fetchone() == (0,)


async def test_where_no_snapshot_can_be_put_away_it_is_folded_all_the_same(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "distance", lambda _: 100)
    monkeypatch.setattr(folding, "PAGE_EVENTS", 20)
    await RandomHistory(seed=22).live(writer, COMMANDS)
    await connection.execute("ALTER TABLE snapshots ADD CHECK (position < 0)")
    await _assert_restored(connection, writer)
    await connection.execute("SET default_transaction_read_only = on")
    await _assert_restored(connection, writer)

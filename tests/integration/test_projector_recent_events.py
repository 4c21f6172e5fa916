"""Events that this process appended reach the tables without being read back, if the log has them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from eventstore import log, lookup
from eventstore.listener import Hints
from projections.projector import Projector
from service import commands as do
from tests.integration.test_projector import POISON, _make_messages_fail_on_poison
from tests.support.components import (
    SCHEMA,
    connected,
    encryption_requested,
    message,
    running,
    running_listener,
    running_writer,
    submit,
)
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.random_history import RandomHistory, submit_history_with_jobs
from tests.support.verify import assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from projections.recent_events import Page
    from service.writing.writer import Writer


@asynccontextmanager
async def _running_squad(database: str) -> AsyncIterator[tuple[Writer, Projector]]:
    """A writer, and a projector that observes what it appends, as in a service."""
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(running_listener(database))
        projector = Projector(database, SCHEMA, listener.events)
        await stack.enter_async_context(running(projector.run()))
        writer = await stack.enter_async_context(running_writer(database, hints=listener.events))
        await eventually(lambda: projector.active)
        await eventually(partial(projected_to_head, database))
        writer.on_known.append(projector.observe)
        yield writer, projector


@pytest.fixture
def read_positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions that were read from the log."""
    positions: list[int] = []
    read_after = log.read_after

    async def recording(connection: Connection, position: int, *more: int) -> list[Recorded]:
        page = await read_after(connection, position, *more)
        positions.extend(recorded.position for recorded in page)
        return page

    monkeypatch.setattr(log, "read_after", recording)
    return positions


async def test_events_of_this_process_are_folded_without_being_read(
    database: str, read_positions: list[int]
) -> None:
    async with _running_squad(database) as (writer, _):
        read_positions.clear()
        await submit_history_with_jobs(writer, 1, 300)
        head = writer.squad.head.position
        await eventually(partial(projected_to_head, database))
    # A notification may arrive before the writer's own answer; then the log is read.
    assert len(read_positions) < head / 2
    assert await assert_tables_equal_fold(database) > 100


async def test_tables_equal_the_fold_of_the_log_after_concurrent_writes(database: str) -> None:
    async with _running_squad(database) as (writer, _):
        await asyncio.gather(*(RandomHistory(seed).submit_commands(writer, 60) for seed in range(8)))
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 100


async def test_events_of_others_that_the_writer_folded_are_not_read_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _running_squad(database) as (writer, projector), running_writer(database) as other:
        taken: list[int] = []
        take_after = projector._recent.take_after

        def recording(after: int) -> Page | None:
            page = take_after(after)
            taken.extend(recorded.position for recorded in (page.recorded if page else ()))
            return page

        monkeypatch.setattr(projector._recent, "take_after", recording)
        theirs: set[int] = set()
        for number in range(100):
            # If theirs comes first, the writer decides under the lock, and knows of it by then.
            # The projector usually gets both together, but never what others have encrypted.
            outcome, _ = await asyncio.gather(
                submit(other, message(f"theirs {number}")), submit(writer, message(f"ours {number}"))
            )
            theirs.add(outcome.position or 0)
            await eventually(partial(projected_to_head, database))
            if encryption_requested() or not theirs.isdisjoint(taken):
                break
    assert encryption_requested() or not theirs.isdisjoint(taken)
    assert await assert_tables_equal_fold(database) > 0


async def test_events_that_others_appended_in_between_are_read(database: str) -> None:
    async with _running_squad(database) as (writer, _), running_writer(database) as other:
        await asyncio.gather(
            RandomHistory(seed=2).submit_commands(writer, 150),
            RandomHistory(seed=3).submit_commands(other, 150),
        )
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 100


async def test_event_that_the_log_does_not_have_reaches_no_table(database: str) -> None:
    """As when the log was replaced by a backup of it, and no process has noticed yet."""
    async with _running_squad(database) as (writer, projector):
        head = writer.squad.head.position
        event = message_sent("never appended")
        async with connected(database) as connection:
            log_writer = LogWriter(connection)
            await log_writer.catch_up()
            row = log_writer.row(event, await log.clock(connection))
            projector.observe([row], [event])
            projector._hints.wake(head + 1)
            # It starts over, and discards what it had.
            await eventually(lambda: not projector._recent)
            await eventually(lambda: projector.active and not projector._recent)
            assert set(projector.positions.values()) == {head}
            await submit(writer, message("appended"))
            await eventually(partial(projected_to_head, database))
            cursor = await connection.execute("SELECT message FROM squad_messages")
            assert await cursor.fetchall() == [("appended",)]
    await assert_tables_equal_fold(database)


@pytest.mark.nothing_sealed
async def test_stored_event_reaches_the_tables_instead_of_another_at_its_position(database: str) -> None:
    async with _running_squad(database) as (_, projector):
        event, other = message_sent("never appended"), agent_registered("zoe")
        async with connected(database) as connection:
            log_writer = LogWriter(connection)
            await log_writer.catch_up()
            row = log_writer.row(event, await log.clock(connection))
            # The projector knows this one before it is woken by the one that is really stored.
            projector.observe([row], [event])
            await log_writer.append(other)
            await eventually(partial(projected_to_head, database))
            cursor = await connection.execute("SELECT count(*) FROM squad_messages")
            assert await cursor.fetchall() == [(0,)]
    assert await assert_tables_equal_fold(database) > 0


async def test_failing_projection_stops_before_the_event_and_others_go_on(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_messages_fail_on_poison(monkeypatch)
    async with _running_squad(database) as (writer, projector):
        before = writer.squad.head.position
        await asyncio.gather(*(submit(writer, message(text)) for text in ("one", POISON, "after")))
        await submit(writer, do.RegisterAgent(name="bob", role="tester"))
        head = writer.squad.head.position
        await eventually(lambda: projector.failed and projector.positions["agents"] == head)
        assert set(projector.failed) == {"messages"}
        position, _ = projector.failed["messages"]
        async with connected(database) as connection:
            found = await lookup.read_one(connection, position)
            assert found is not None
            assert found.type == "message_sent"
            assert encryption_requested() or POISON in found.data
        assert projector.positions["messages"] == position - 1 >= before


async def test_rows_that_a_replay_has_replaced_are_not_overwritten(database: str) -> None:
    async with _running_squad(database) as (writer, projector), connected(database) as connection:
        await RandomHistory(seed=5).submit_commands(writer, 30)
        await eventually(partial(projected_to_head, database))
        await connection.execute("UPDATE projections SET generation = generation + 1")
        await RandomHistory(seed=6).submit_commands(writer, 30)
        await eventually(partial(projected_to_head, database))
        await eventually(lambda: projector._generation == 2)
    assert await assert_tables_equal_fold(database) > 0


async def test_hint_without_a_position_makes_the_projector_read_the_log(database: str) -> None:
    """As after the listener was disconnected: nobody knows what was notified meanwhile."""
    hints = Hints()
    projector = Projector(database, SCHEMA, hints)
    async with running_writer(database) as writer, running(projector.run()):
        await eventually(lambda: projector.active)
        await eventually(partial(projected_to_head, database))
        writer.on_known.append(projector.observe)
        async with connected(database) as connection:
            rescues = projector.poll_rescues
            await submit(writer, message("ours"))
            hints.wake(writer.squad.head.position)
            await eventually(partial(projected_to_head, database))
            log_writer = LogWriter(connection)
            await log_writer.catch_up()
            await log_writer.append(agent_registered("zoe"))
            hints.wake()
            await eventually(partial(projected_to_head, database))
            assert projector.poll_rescues == rescues


async def test_recent_events_are_not_kept_when_another_process_is_the_projector(database: str) -> None:
    standby = Projector(database, SCHEMA, Hints())
    async with _running_squad(database) as (writer, _), running(standby.run()):
        writer.on_known.append(standby.observe)
        await RandomHistory(seed=7).submit_commands(writer, 20)
        assert not standby.active
        assert not standby._recent


async def test_notification_that_arrives_before_its_event_is_not_lost(database: str) -> None:
    """The listener may learn of a commit before the writer does."""
    hints = Hints()
    projector = Projector(database, SCHEMA, hints)
    async with running_writer(database) as writer, running(projector.run()):
        await eventually(lambda: projector.active)
        await eventually(partial(projected_to_head, database))
        rescues = projector.poll_rescues
        for number in range(10):
            # When the hint comes, the first is in memory and the second is not yet.
            writer.on_known.append(projector.observe)
            await submit(writer, message(f"at hand {number}"))
            writer.on_known.clear()
            await submit(writer, message(f"not yet {number}"))
            hints.wake(writer.squad.head.position)
            await eventually(partial(projected_to_head, database))
        assert projector.poll_rescues == rescues

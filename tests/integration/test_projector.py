"""The projector keeps the tables a fold of the log up to their position, whichever process runs it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from eventstore import log
from eventstore.events import MessageSent
from eventstore.listener import Hints
from projections import PROJECTIONS, projector, row_cache
from projections.messages import messages
from projections.projector import Projector
from service import commands as do
from tests.support.components import connected, message, running, running_listener, running_writer, submit
from tests.support.log import LogWriter, agent_registered, message_sent, new_id
from tests.support.random_history import RandomHistory
from tests.support.verify import assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from projections.projection import View

POISON = "poison"


def _make_messages_fail_on_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, reads = messages.handlers[MessageSent]

    def fail_on_poison(view: View, event: MessageSent, recorded: Recorded) -> None:
        if event.message == POISON:
            raise ArithmeticError("not to my taste")
        handler(view, event, recorded)

    handlers: dict[Any, Any] = messages.handlers
    monkeypatch.setitem(handlers, MessageSent, (fail_on_poison, reads))


async def _read_states(connection: Connection) -> dict[str, tuple[int, int | None, str | None]]:
    cursor = await connection.execute("SELECT name, position, failed_position, error FROM projections")
    return {name: (position, failed, error) for name, position, failed, error in await cursor.fetchall()}


@pytest.mark.nothing_sealed
async def test_value_too_large_for_an_index_stops_only_its_projection(
    database: str, connection: Connection
) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"))
    # Random, so that compression does not make it short enough.
    await log_writer.append(structs.replace(message_sent("hello"), to_agent=token_hex(4_000)))
    await log_writer.append(message_sent("hello again"))
    active = Projector(database, "squad", Hints())
    async with running(active.run()):
        await eventually(lambda: "messages" in active.failed)
        await eventually(lambda: active.positions["agents"] == log_writer.head.position)
    reported = await _read_states(connection)
    position, failed, error = reported.pop("messages")
    assert (position, failed) == (1, 2)
    assert error
    assert "index row size" in error
    assert {failed for _, failed, _ in reported.values()} == {None}


@pytest.mark.nothing_sealed
async def test_projector_pauses_after_a_page_for_as_long_as_the_process_was_busy(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, pauses, sleep = count(0, 0.00125), list[float](), asyncio.sleep

    async def recording_sleep(delay: float) -> None:
        pauses.append(delay)
        await sleep(delay)

    monkeypatch.setattr(projector, "thread_time", lambda: next(busy))
    monkeypatch.setattr(asyncio, "sleep", recording_sleep)
    async with running(Projector(database, "squad", Hints()).run()):
        await LogWriter(connection).append(agent_registered("alice"))
        await eventually(lambda: 0.00125 in pauses)


async def test_tables_equal_the_fold_of_the_log(database: str) -> None:
    async with (
        running_listener(database) as listener,
        running(Projector(database, "squad", listener.events).run()),
        running_writer(database, hints=listener.events) as writer,
    ):
        await RandomHistory(seed=1).submit_commands(writer, 400)
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 100


async def test_existing_log_is_folded_page_by_page(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=2).submit_commands(writer, 300, at_once=20)
    monkeypatch.setattr(log, "PAGE_EVENTS", 7)
    async with running(Projector(database, "squad", Hints()).run()):
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 100


@pytest.mark.parametrize(("limit", "value"), [("CACHED_ROWS", 2), ("MAX_ROW_CHARACTERS", 0)])
async def test_rows_evicted_from_the_cache_are_read_again(
    database: str, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(row_cache, limit, value)
    async with running_writer(database) as writer:
        await RandomHistory(seed=3).submit_commands(writer, 300, at_once=20)
    monkeypatch.setattr(log, "PAGE_EVENTS", 5)
    async with running(Projector(database, "squad", Hints()).run()):
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 100


async def test_large_rows_are_not_cached(database: str) -> None:
    projector = Projector(database, "squad", Hints())

    def cached() -> set[Any]:
        return set(projector._folder._caches["email_logs"])

    async with running_writer(database) as writer, running(projector.run()):
        logged = [
            await submit(
                writer,
                do.LogEmail(
                    gmail_message_id=f"m{size}", from_email="a@b.test", payload={"text": "x" * size}
                ),
            )
            for size in (100, 100_000)
        ]
        small, large = (outcome.reply["id"] for outcome in logged)
        await eventually(partial(projected_to_head, database))
        assert cached() == {small}
        for email in (large, small):
            await submit(writer, do.UpdateEmail(email_id=email, status="archived"))
        await eventually(partial(projected_to_head, database))
        assert cached() == {small}
    assert await assert_tables_equal_fold(database) > 2


@pytest.mark.nothing_sealed
async def test_projector_polls_when_no_hint_comes(database: str, connection: Connection) -> None:
    deaf = Projector(database, "squad", Hints())
    async with running(deaf.run()):
        await eventually(lambda: deaf.active)
        await LogWriter(connection).append(agent_registered("alice"))
        await eventually(lambda: deaf.positions["agents"] == 1)


@pytest.mark.nothing_sealed
async def test_projector_notifies_readers_of_the_position_it_has_reached(
    database: str, connection: Connection
) -> None:
    async with running_listener(database) as listener:
        active = Projector(database, "squad", listener.events)
        async with running(active.run()):
            await eventually(lambda: active.active)
            await LogWriter(connection).append(agent_registered("alice"), message_sent("hello"))
            await eventually(lambda: listener.projections.position == 2)
            assert set((await _read_states(connection)).values()) == {(2, None, None)}


@pytest.mark.nothing_sealed
async def test_failing_projection_stops_before_the_event_and_others_go_on(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_messages_fail_on_poison(monkeypatch)
    log_writer = LogWriter(connection)
    await log_writer.append(
        agent_registered("alice"), message_sent("one"), message_sent(POISON), message_sent("after")
    )
    failing = Projector(database, "squad", Hints())
    async with running(failing.run()):
        await eventually(lambda: failing.failed)
        await log_writer.append(message_sent("later"))
        await eventually(lambda: failing.positions["agents"] == 5)
    reason = "ArithmeticError: not to my taste"
    assert failing.failed == {"messages": (3, reason)}
    assert failing.positions["messages"] == 2
    reported = await _read_states(connection)
    assert reported.pop("messages") == (2, 3, reason)
    assert set(reported.values()) == {(5, None, None)}
    assert await assert_tables_equal_fold(database) > 0


@pytest.mark.nothing_sealed
async def test_failed_projection_resumes_where_it_stopped_once_it_is_fixed(
    database: str, connection: Connection
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _make_messages_fail_on_poison(patch)
        await LogWriter(connection).append(
            agent_registered("alice"), message_sent(POISON), message_sent("two")
        )
        failing = Projector(database, "squad", Hints())
        async with running(failing.run()):
            await eventually(lambda: failing.failed)
    fixed = Projector(database, "squad", Hints())
    async with running(fixed.run()):
        await eventually(partial(projected_to_head, database))
    assert not fixed.failed
    assert set((await _read_states(connection)).values()) == {(3, None, None)}
    assert await assert_tables_equal_fold(database) == 3


@pytest.mark.nothing_sealed
async def test_failed_projection_retries_and_resumes_by_itself(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "RETRY_FAILED_SECONDS", 0.2)
    failing = Projector(database, "squad", Hints())
    async with running(failing.run()):
        with pytest.MonkeyPatch.context() as patch:
            _make_messages_fail_on_poison(patch)
            await LogWriter(connection).append(
                agent_registered("alice"), message_sent("one"), message_sent(POISON), message_sent("two")
            )
            await eventually(lambda: failing.failed)
            first = failing._failed_at
            await eventually(lambda: failing._failed_at > first)
            assert failing.positions["messages"] == 2
        await eventually(partial(projected_to_head, database))
        await eventually(lambda: not failing.failed)
        await eventually(lambda: _all_healthy(connection, 4))
    assert await assert_tables_equal_fold(database) == 4


async def _all_healthy(connection: Connection, position: int) -> bool:
    return set((await _read_states(connection)).values()) == {(position, None, None)}


@pytest.mark.parametrize(
    "unknown",
    [{"schema_version": 9}, {"type": "from_the_future"}, {"data": '{"agent": 1}'}],
    ids=["newer version", "unknown type", "other shape"],
)
@pytest.mark.nothing_sealed
async def test_every_projection_stops_at_an_event_that_cannot_be_read(
    database: str, connection: Connection, unknown: dict[str, Any]
) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"), message_sent("fine"))
    await log_writer.append(agent_registered("bob"), **unknown)
    await log_writer.append(message_sent("after"))
    stuck = Projector(database, "squad", Hints())
    async with running(stuck.run()):
        await eventually(lambda: len(stuck.failed) == len(PROJECTIONS))
    for position, failed, error in (await _read_states(connection)).values():
        assert (position, failed) == (2, 3)
        assert error is not None
        assert "position 3" in error


@pytest.mark.nothing_sealed
async def test_projection_with_a_new_fold_version_is_rebuilt(database: str, connection: Connection) -> None:
    await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
    async with running(Projector(database, "squad", Hints()).run()):
        await eventually(partial(projected_to_head, database))
    # A row that only another fold could have made.
    await connection.execute(
        "INSERT INTO squad_message_acks VALUES (%s, 'ghost', clock_timestamp(), 1)", (new_id(),)
    )
    others = [projection for projection in PROJECTIONS if projection is not messages]
    newer = Projector(
        database, "squad", Hints(), [*others, replace(messages, fold_version=messages.fold_version + 1)]
    )
    async with running(newer.run()):
        await eventually(lambda: newer.active and newer.positions["messages"] == 2)
    assert await assert_tables_equal_fold(database) == 2


@pytest.mark.nothing_sealed
async def test_second_projector_stands_by_and_takes_over(database: str, connection: Connection) -> None:
    first, second = (Projector(database, "squad", Hints()) for _ in range(2))
    async with running(second.run()):
        async with running(first.run()):
            await eventually(lambda: first.active or second.active)
            await LogWriter(connection).append(agent_registered("alice"))
            await eventually(partial(projected_to_head, database))
            assert first.active != second.active
        await eventually(lambda: second.active)


@pytest.mark.nothing_sealed
async def test_overtaken_projector_discards_its_cache_and_starts_over(
    database: str, connection: Connection
) -> None:
    """As when its connection was taken for dead and its lock went to another process."""
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"))
    overtaken = Projector(database, "squad", Hints())
    async with running(overtaken.run()):
        await eventually(lambda: overtaken.active and overtaken.positions["messages"] == 1)
        await connection.execute("UPDATE projections SET position = 0 WHERE name = 'agents'")
        await connection.execute("TRUNCATE squad_agents")
        await log_writer.append(message_sent("two"))
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) == 2


async def test_write_is_in_the_tables_without_waiting_for_a_poll(database: str) -> None:
    async with (
        running_listener(database) as listener,
        running(Projector(database, "squad", listener.events).run()),
        running_writer(database, hints=listener.events) as writer,
        connected(database) as connection,
    ):
        await eventually(partial(projected_to_head, database))
        outcome = await submit(writer, message("hello"))
        # Sooner than any poll.
        await eventually(lambda: listener.projections.position == outcome.position, within_seconds=0.8)
        cursor = await connection.execute("SELECT message FROM squad_messages")
        assert await cursor.fetchall() == [("hello",)]

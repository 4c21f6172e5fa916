"""The projector: the tables are a fold of the log, in step with their position, whoever runs it."""

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
from tests.support.log import LogWriter, joined, new_id, said
from tests.support.parts import connected, message, running, running_listener, running_writer, submit
from tests.support.random_history import RandomHistory
from tests.support.verify import assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from projections.projection import View

POISON = "poison"


def _make_messages_choke_on_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, reads = messages.handlers[MessageSent]

    def choosy(view: View, event: MessageSent, recorded: Recorded) -> None:
        if event.message == POISON:
            raise ArithmeticError("not to my taste")
        handler(view, event, recorded)

    handlers: dict[Any, Any] = messages.handlers
    monkeypatch.setitem(handlers, MessageSent, (choosy, reads))


async def _reported(connection: Connection) -> dict[str, tuple[int, int | None, str | None]]:
    cursor = await connection.execute("SELECT name, position, failed_position, error FROM projections")
    return {name: (position, failed, error) for name, position, failed, error in await cursor.fetchall()}


async def test_what_no_index_holds_stops_its_projection_and_no_other(
    database: str, connection: Connection
) -> None:
    scribe = LogWriter(connection)
    await scribe.append(joined("alice"))
    # No compression makes it short enough.
    await scribe.append(structs.replace(said("hello"), to_agent=token_hex(4_000)))
    await scribe.append(said("hello again"))
    active = Projector(database, "squad", Hints())
    async with running(active.run()):
        await eventually(lambda: "messages" in active.failed)
        await eventually(lambda: active.positions["agents"] == scribe.head.position)
    reported = await _reported(connection)
    position, failed, error = reported.pop("messages")
    assert (position, failed) == (1, 2)
    assert error
    assert "index row size" in error
    assert {failed for _, failed, _ in reported.values()} == {None}


async def test_it_rests_after_a_page_for_as_long_as_the_process_was_busy(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, rests, sleep = count(0, 0.00125), list[float](), asyncio.sleep

    async def resting(delay: float) -> None:
        rests.append(delay)
        await sleep(delay)

    monkeypatch.setattr(projector, "thread_time", lambda: next(busy))
    monkeypatch.setattr(asyncio, "sleep", resting)
    async with running(Projector(database, "squad", Hints()).run()):
        await LogWriter(connection).append(joined("alice"))
        await eventually(lambda: 0.00125 in rests)


async def test_the_tables_hold_what_the_log_tells(database: str) -> None:
    async with (
        running_listener(database) as listener,
        running(Projector(database, "squad", listener.events).run()),
        running_writer(database, hints=listener.events) as writer,
    ):
        await RandomHistory(seed=1).live(writer, 400)
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 100


async def test_a_log_that_was_there_before_is_folded_page_by_page(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=2).live(writer, 300)
    monkeypatch.setattr(log, "PAGE_EVENTS", 7)
    async with running(Projector(database, "squad", Hints()).run()):
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 100


@pytest.mark.parametrize(("bound", "most"), [("CACHED_ROWS", 2), ("MAX_ROW_CHARACTERS", 0)])
async def test_rows_that_left_the_cache_are_read_again(
    database: str, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(row_cache, bound, most)
    async with running_writer(database) as writer:
        await RandomHistory(seed=3).live(writer, 300)
    monkeypatch.setattr(log, "PAGE_EVENTS", 5)
    async with running(Projector(database, "squad", Hints()).run()):
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 100


async def test_however_large_rows_are_little_of_them_stays_in_memory(database: str) -> None:
    projector = Projector(database, "squad", Hints())

    def kept() -> set[Any]:
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
        assert kept() == {small}
        for email in (large, small):
            await submit(writer, do.UpdateEmail(email_id=email, status="archived"))
        await eventually(partial(projected_to_head, database))
        assert kept() == {small}
    assert await assert_tables_equal_fold(database) > 2


async def test_it_looks_by_itself_where_no_hint_comes(database: str, connection: Connection) -> None:
    deaf = Projector(database, "squad", Hints())
    async with running(deaf.run()):
        await eventually(lambda: deaf.active)
        await LogWriter(connection).append(joined("alice"))
        await eventually(lambda: deaf.positions["agents"] == 1)


async def test_it_says_how_far_it_is_when_it_is_there(database: str, connection: Connection) -> None:
    async with running_listener(database) as listener:
        active = Projector(database, "squad", listener.events)
        async with running(active.run()):
            await eventually(lambda: active.active)
            await LogWriter(connection).append(joined("alice"), said("hello"))
            await eventually(lambda: listener.projections.position == 2)
            assert set((await _reported(connection)).values()) == {(2, None, None)}


async def test_one_that_fails_stops_before_the_event_and_stops_no_other(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_messages_choke_on_poison(monkeypatch)
    scribe = LogWriter(connection)
    await scribe.append(joined("alice"), said("one"), said(POISON), said("after"))
    choking = Projector(database, "squad", Hints())
    async with running(choking.run()):
        await eventually(lambda: choking.failed)
        await scribe.append(said("later"))
        await eventually(lambda: choking.positions["agents"] == 5)
    reason = "ArithmeticError: not to my taste"
    assert choking.failed == {"messages": (3, reason)}
    assert choking.positions["messages"] == 2
    reported = await _reported(connection)
    assert reported.pop("messages") == (2, 3, reason)
    assert set(reported.values()) == {(5, None, None)}
    assert await assert_tables_equal_fold(database) > 0


async def test_one_that_failed_goes_on_where_it_stopped_once_it_is_mended(
    database: str, connection: Connection
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _make_messages_choke_on_poison(patch)
        await LogWriter(connection).append(joined("alice"), said(POISON), said("two"))
        choking = Projector(database, "squad", Hints())
        async with running(choking.run()):
            await eventually(lambda: choking.failed)
    mended = Projector(database, "squad", Hints())
    async with running(mended.run()):
        await eventually(partial(projected_to_head, database))
    assert not mended.failed
    assert set((await _reported(connection)).values()) == {(3, None, None)}
    assert await assert_tables_equal_fold(database) == 3


async def test_one_that_failed_tries_again_after_a_while_and_goes_on_by_itself(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "RETRY_FAILED_SECONDS", 0.2)
    choking = Projector(database, "squad", Hints())
    async with running(choking.run()):
        with pytest.MonkeyPatch.context() as patch:
            _make_messages_choke_on_poison(patch)
            await LogWriter(connection).append(joined("alice"), said("one"), said(POISON), said("two"))
            await eventually(lambda: choking.failed)
            first = choking._failed_at
            await eventually(lambda: choking._failed_at > first)
            assert choking.positions["messages"] == 2
        await eventually(partial(projected_to_head, database))
        await eventually(lambda: not choking.failed)
        await eventually(lambda: _all_well(connection, 4))
    assert await assert_tables_equal_fold(database) == 4


async def _all_well(connection: Connection, position: int) -> bool:
    return set((await _reported(connection)).values()) == {(position, None, None)}


@pytest.mark.parametrize(
    "unknown",
    [{"schema_version": 9}, {"type": "from_the_future"}, {"data": '{"agent": 1}'}],
    ids=["newer version", "unknown type", "other shape"],
)
async def test_nobody_steps_over_an_event_that_cannot_be_read(
    database: str, connection: Connection, unknown: dict[str, Any]
) -> None:
    scribe = LogWriter(connection)
    await scribe.append(joined("alice"), said("fine"))
    await scribe.append(joined("bob"), **unknown)
    await scribe.append(said("after"))
    stuck = Projector(database, "squad", Hints())
    async with running(stuck.run()):
        await eventually(lambda: len(stuck.failed) == len(PROJECTIONS))
    for position, failed, error in (await _reported(connection)).values():
        assert (position, failed) == (2, 3)
        assert error is not None
        assert "position 3" in error


async def test_one_that_folds_differently_now_begins_afresh(database: str, connection: Connection) -> None:
    await LogWriter(connection).append(joined("alice"), said("one"))
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


async def test_of_two_projectors_one_works_and_the_other_stands_by(
    database: str, connection: Connection
) -> None:
    first, second = (Projector(database, "squad", Hints()) for _ in range(2))
    async with running(second.run()):
        async with running(first.run()):
            await eventually(lambda: first.active or second.active)
            await LogWriter(connection).append(joined("alice"))
            await eventually(partial(projected_to_head, database))
            assert first.active != second.active
        await eventually(lambda: second.active)


async def test_one_that_was_overtaken_keeps_nothing_and_begins_anew(
    database: str, connection: Connection
) -> None:
    """As where a connection was thought dead and its lock was given to another."""
    scribe = LogWriter(connection)
    await scribe.append(joined("alice"))
    overtaken = Projector(database, "squad", Hints())
    async with running(overtaken.run()):
        await eventually(lambda: overtaken.active and overtaken.positions["messages"] == 1)
        await connection.execute("UPDATE projections SET position = 0 WHERE name = 'agents'")
        await connection.execute("TRUNCATE squad_agents")
        await scribe.append(said("two"))
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) == 2


async def test_a_write_shows_in_the_tables_at_once(database: str) -> None:
    async with (
        running_listener(database) as listener,
        running(Projector(database, "squad", listener.events).run()),
        running_writer(database, hints=listener.events) as writer,
        connected(database) as connection,
    ):
        await eventually(partial(projected_to_head, database))
        outcome = await submit(writer, message("hello"))
        # Sooner than anybody would look by himself.
        await eventually(lambda: listener.projections.position == outcome.position, within_seconds=0.8)
        cursor = await connection.execute("SELECT message FROM squad_messages")
        assert await cursor.fetchall() == [("hello",)]

"""A batch is full when its events are large or many, however few its commands; the next takes the rest."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from eventstore import log
from service.requests import Request
from tests.support.parts import connected, message, running_writer
from tests.support.random_history import RandomHistory
from tests.support.tables import project
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.writing.writer import Writer

COMMANDS = 40


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events each append had."""
    sizes: list[int] = []
    append = log.append

    async def noting(
        connection: Connection, batch: Sequence[Recorded], decided_at: datetime, **how: Any
    ) -> datetime:
        its_time = await append(connection, batch, decided_at, **how)
        sizes.append(len(batch))
        return its_time

    monkeypatch.setattr(log, "append", noting)
    return sizes


async def _all(writer: Writer, numbers: range) -> list[int]:
    """Has messages decided that come together; returns their positions."""
    requests = [Request(message(str(number)), "agent:alice", "together") for number in numbers]
    outcomes = await asyncio.gather(*writer.put_all(requests))
    return [outcome.position or 0 for outcome in outcomes]


async def test_what_takes_too_long_to_decide_goes_some_at_a_time(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database takes only what was decided within the last second. On a slow machine that is little."""
    append, turned_back = log.append, 0

    async def slowly(
        connection: Connection, batch: Sequence[Recorded], decided_at: datetime, **how: Any
    ) -> datetime:
        nonlocal turned_back
        if len(batch) > 4:
            turned_back += 1
            decided_at -= timedelta(seconds=2)
        return await append(connection, batch, decided_at, **how)

    async with running_writer(database) as writer:
        await _all(writer, range(1))
        monkeypatch.setattr(log, "append", slowly)
        positions = await _all(writer, range(1, COMMANDS))
        assert turned_back
        assert positions == sorted(set(positions))
    await assert_log_is_sound(database)


@pytest.mark.parametrize(("bound", "most"), [("MAX_BATCH_BYTES", 200), ("MAX_BATCH_EVENTS", 3)])
async def test_what_is_left_goes_into_the_next_in_order(
    database: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    async with running_writer(database) as writer:
        await _all(writer, range(1))
        sizes.clear()
        monkeypatch.setattr(f"service.writing.batch.{bound}", most)
        positions = await _all(writer, range(COMMANDS))
        assert positions == list(range(positions[0], positions[0] + COMMANDS))
        assert sum(sizes) == COMMANDS
        assert max(sizes) < COMMANDS / 4
    await assert_log_is_sound(database)


@pytest.mark.parametrize("writers", [1, 2])
async def test_nothing_is_lost_or_doubled_where_each_batch_is_full_at_once(
    database: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch, writers: int
) -> None:
    monkeypatch.setattr("service.writing.batch.MAX_BATCH_BYTES", 1)
    async with AsyncExitStack() as stack:
        alive = [await stack.enter_async_context(running_writer(database)) for _ in range(writers)]
        await asyncio.gather(*(RandomHistory(seed).live(writer, 60) for seed, writer in enumerate(alive)))
        found = await asyncio.gather(*(_all(writer, range(COMMANDS)) for writer in alive))
    for positions in found:
        assert positions == sorted(positions)
    assert len({position for positions in found for position in positions}) == COMMANDS * writers
    async with connected(database) as connection:
        assert await log.head_position(connection) == sum(sizes)
    await assert_log_is_sound(database)
    await project(database)
    await assert_tables_equal_fold(database)

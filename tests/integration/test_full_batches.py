"""A batch is full when its events are large or many, however few its commands; the next has the rest."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from eventstore import log
from service.requests import Request
from tests.support.components import connected, message, running_writer
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
    """The number of events of each append."""
    sizes: list[int] = []
    append = log.append

    async def recording(
        connection: Connection, batch: Sequence[Recorded], decided_at: datetime, **how: Any
    ) -> datetime:
        recorded_at = await append(connection, batch, decided_at, **how)
        sizes.append(len(batch))
        return recorded_at

    monkeypatch.setattr(log, "append", recording)
    return sizes


async def _submit_together(writer: Writer, numbers: range) -> list[int]:
    """Submit messages together; return their positions."""
    requests = [Request(message(str(number)), "agent:alice", "together") for number in numbers]
    outcomes = await asyncio.gather(*writer.put_all(requests))
    return [outcome.position or 0 for outcome in outcomes]


async def test_batch_that_takes_too_long_to_decide_is_split(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database accepts only what was decided within the last second: not much on a slow machine."""
    append, rejected = log.append, 0

    async def append_slowly(
        connection: Connection, batch: Sequence[Recorded], decided_at: datetime, **how: Any
    ) -> datetime:
        nonlocal rejected
        if len(batch) > 4:
            rejected += 1
            decided_at -= timedelta(seconds=2)
        return await append(connection, batch, decided_at, **how)

    async with running_writer(database) as writer:
        await _submit_together(writer, range(1))
        monkeypatch.setattr(log, "append", append_slowly)
        positions = await _submit_together(writer, range(1, COMMANDS))
        assert rejected
        assert positions == sorted(set(positions))
    await assert_log_is_sound(database)


@pytest.mark.parametrize(("limit", "value"), [("MAX_BATCH_BYTES", 200), ("MAX_BATCH_EVENTS", 3)])
async def test_commands_beyond_a_full_batch_follow_in_order(
    database: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    async with running_writer(database) as writer:
        await _submit_together(writer, range(1))
        sizes.clear()
        monkeypatch.setattr(f"service.writing.batch.{limit}", value)
        positions = await _submit_together(writer, range(COMMANDS))
        assert positions == list(range(positions[0], positions[0] + COMMANDS))
        assert sum(sizes) == COMMANDS
        assert max(sizes) < COMMANDS / 4
    await assert_log_is_sound(database)


@pytest.mark.parametrize("writers", [1, 2])
async def test_nothing_is_lost_or_duplicated_when_each_command_fills_a_batch(
    database: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch, writers: int
) -> None:
    monkeypatch.setattr("service.writing.batch.MAX_BATCH_BYTES", 1)
    async with AsyncExitStack() as stack:
        active = [await stack.enter_async_context(running_writer(database)) for _ in range(writers)]
        await asyncio.gather(
            *(RandomHistory(seed).submit_commands(writer, 60) for seed, writer in enumerate(active))
        )
        results = await asyncio.gather(*(_submit_together(writer, range(COMMANDS)) for writer in active))
    for positions in results:
        assert positions == sorted(positions)
    assert len({position for positions in results for position in positions}) == COMMANDS * writers
    async with connected(database) as connection:
        assert await log.head_position(connection) == sum(sizes)
    await assert_log_is_sound(database)
    await project(database)
    await assert_tables_equal_fold(database)

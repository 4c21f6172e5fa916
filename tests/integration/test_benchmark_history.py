"""The simulated history that benchmarks run on is as sound as a log that a service wrote."""

from __future__ import annotations

import pytest

from benchmarks.history import fill
from eventstore.listener import Hints
from projections.projector import Projector
from service import commands as do
from tests.support.components import running, running_writer, submit
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

EVENTS = 25_000


async def test_simulated_history_is_sound_can_be_projected_and_can_be_continued(
    empty_database: str,
) -> None:
    counts = [count async for count in fill(empty_database, "squad", EVENTS)]
    events = await assert_log_is_sound(empty_database)
    assert counts[-1] == len(events) >= EVENTS
    assert counts == sorted(counts)
    async with (
        running(Projector(empty_database, "squad", Hints()).run()),
        running_writer(empty_database) as writer,
    ):
        outcome = await submit(writer, do.SendMessage(from_agent="agent_02", message="and so on"))
        assert outcome.position
        assert outcome.position > len(events)

        async def projected() -> bool:
            return await projected_to_head(empty_database)

        await eventually(projected, within_seconds=60)
    assert await assert_tables_equal_fold(empty_database) > 1_000


async def test_squad_that_has_events_is_refused_and_unchanged(empty_database: str) -> None:
    async for _ in fill(empty_database, "squad", 100):
        pass
    before = await assert_log_is_sound(empty_database)
    with pytest.raises(ValueError, match="already has events"):
        async for _ in fill(empty_database, "squad", 100):
            pass
    assert await assert_log_is_sound(empty_database) == before

"""The latest events in memory: how far they reach back, and how their memory is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.recorded import Recorded
from service import tail as module
from service.tail import Tail
from tests.unit.stories import START
from tests.unit.tails import after

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


def event(position: int, size: int = 10) -> Recorded:
    return Recorded(
        position, "id", "stream", 1, "type", 1, "x" * size, "actor", None, "c", None, START, b""
    )


async def _unchanged(page: Sequence[Recorded]) -> list[Recorded]:
    return list(page)


def make_tail(count: int, size: int = 10) -> Tail:
    tail = Tail(_unchanged)
    for position in range(1, count + 1):
        tail.extend([event(position, size)])
    return tail


async def length(tail: Tail, head: int) -> int:
    """How many events it has, up to the head."""
    first = head
    while first > 1 and await after(tail, first - 2, 1):
        first -= 1
    return head + 1 - first


async def test_tail_has_the_events_since_it_was_created() -> None:
    tail = make_tail(5)
    found = await after(tail, 2, 2)
    assert found is not None
    assert [item.position for item in found] == [3, 4]
    assert await after(tail, 5, 10) == []


async def test_number_of_events_exceeds_the_limit_by_at_most_one_eviction_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 10)
    monkeypatch.setattr(module, "EVICTION_STEPS", 3)
    lengths = {await length(make_tail(count), count) for count in range(10, 60)}
    assert lengths == {10, 11, 12, 13}


async def test_number_of_bytes_is_limited_except_for_the_newest_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1_000)
    for count in range(10, 60):
        tail = make_tail(count, size=100)
        assert await length(tail, count) == 10
    # An event that is larger than the limit is kept, and nothing else.
    tail.extend([event(60, size=5_000)])
    assert await after(tail, 58, 1) is None
    assert [item.position for item in (await after(tail, 59, 1)) or ()] == [60]


async def test_count_of_bytes_restarts_after_a_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1_000)
    tail = make_tail(15, size=100)
    tail.extend([event(position, 100) for position in range(100, 110)])
    assert await after(tail, 14, 1) is None
    assert len((await after(tail, 99, 100)) or ()) == 10


async def test_revealed_events_count_by_their_revealed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1_000)

    async def reveal_longer(page: Sequence[Recorded]) -> list[Recorded]:
        return [sealed._replace(data="x" * 200) for sealed in page]

    tail = Tail(reveal_longer)
    for position in range(1, 21):
        tail.extend([event(position)._replace(type="message_sent", data='"sealed":{"key":"..."')])
    assert len((await after(tail, 0, 20)) or ()) == 20
    tail.extend([event(21)])
    assert await length(tail, 21) == 5

"""The latest events in memory: how far they reach back, and that they are bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.recorded import Recorded
from service import tail
from service.tail import Tail
from tests.unit.support import START
from tests.unit.tails import after

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


def event(position: int, size: int = 10) -> Recorded:
    return Recorded(
        position, "id", "stream", 1, "type", 1, "x" * size, "actor", None, "c", None, START, b""
    )


async def _as_they_are(page: Sequence[Recorded]) -> list[Recorded]:
    return list(page)


def filled(count: int, size: int = 10) -> Tail:
    kept = Tail(_as_they_are)
    for position in range(1, count + 1):
        kept.extend([event(position, size)])
    return kept


async def length(kept: Tail, head: int) -> int:
    """How many events it has, up to the head."""
    first = head
    while first > 1 and await after(kept, first - 2, 1):
        first -= 1
    return head + 1 - first


async def test_it_has_what_came_since_it_began() -> None:
    kept = filled(5)
    found = await after(kept, 2, 2)
    assert found is not None
    assert [item.position for item in found] == [3, 4]
    assert await after(kept, 5, 10) == []


async def test_it_keeps_so_many_events_and_a_few_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_EVENTS", 10)
    monkeypatch.setattr(tail, "EVICTION_STEPS", 3)
    lengths = {await length(filled(count), count) for count in range(10, 60)}
    assert lengths == {10, 11, 12, 13}


async def test_it_keeps_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_BYTES", 1_000)
    for count in range(10, 60):
        kept = filled(count, size=100)
        assert await length(kept, count) == 10
    # One that is larger than all that is kept is kept, and nothing else.
    kept.extend([event(60, size=5_000)])
    assert await after(kept, 58, 1) is None
    assert [item.position for item in (await after(kept, 59, 1)) or ()] == [60]


async def test_what_is_counted_begins_anew_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tail, "MAX_BYTES", 1_000)
    kept = filled(15, size=100)
    kept.extend([event(position, 100) for position in range(100, 110)])
    assert await after(kept, 14, 1) is None
    assert len((await after(kept, 99, 100)) or ()) == 10


async def test_what_was_revealed_counts_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_BYTES", 1_000)

    async def ten_times_as_long(page: Sequence[Recorded]) -> list[Recorded]:
        return [sealed._replace(data="x" * 200) for sealed in page]

    kept = Tail(ten_times_as_long)
    for position in range(1, 21):
        kept.extend([event(position)._replace(type="message_sent", data='"sealed":{"key":"..."')])
    assert len((await after(kept, 0, 20)) or ()) == 20
    kept.extend([event(21)])
    assert await length(kept, 21) == 5

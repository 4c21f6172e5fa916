"""How many event streams may be open, what rest they owe, and what is made once for all of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from eventstore.recorded import Recorded
from service.callers import ANYBODY, Caller
from service.http import open_streams as module
from service.http.open_streams import MAX_PAUSE_FACTOR, OpenStreams, Throttle
from service.http.problems import Problem
from tests.unit.support import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ONE, OTHER = Caller("operator", "2222222222"), Caller("operator", "3333333333")


@asynccontextmanager
async def following(streams: OpenStreams, who: Caller = ANYBODY) -> AsyncIterator[asyncio.Task[None]]:
    """A task that has a stream open, which is ended with the block."""
    is_open = asyncio.Event()

    async def follow() -> None:
        with streams.count_open(who):
            is_open.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(follow())
    opening = asyncio.create_task(is_open.wait())
    await asyncio.wait((task, opening), return_when=asyncio.FIRST_COMPLETED)
    opening.cancel()
    if task.done():
        task.result()
    yield task
    task.cancel()
    await asyncio.wait((task,))


async def refusal(streams: OpenStreams, who: Caller = ANYBODY) -> str:
    with pytest.raises(Problem) as refused:
        async with following(streams, who):
            pass
    assert refused.value.body["retry_after_seconds"] == 5
    return refused.value.code


async def test_there_are_as_many_as_may_be_and_one_that_ends_makes_room() -> None:
    streams = OpenStreams(maximum=2, max_per_key=2)
    async with following(streams), following(streams):
        assert await refusal(streams) == "streams_full"
    async with following(streams), following(streams):
        assert await refusal(streams, ONE) == "streams_full"


async def test_a_key_has_its_own_share_and_without_one_nobody_is_counted_apart() -> None:
    streams = OpenStreams(maximum=9, max_per_key=1)
    for _ in range(2):
        async with following(streams, ONE), following(streams, OTHER):
            assert await refusal(streams, ONE) == "too_many_streams"
        async with following(streams), following(streams):
            pass
    assert not streams._by_key


async def test_all_of_them_end_with_the_service() -> None:
    streams = OpenStreams(maximum=9, max_per_key=9)
    async with following(streams) as one, following(streams, ONE) as other:
        streams.end()
        await asyncio.wait((one, other))
        assert one.cancelled()
        assert other.cancelled()


@pytest.mark.parametrize(
    ("others", "rest"), [(0, 0.0), (1, 0.1), (20, 2.0), (90, MAX_PAUSE_FACTOR), (95, MAX_PAUSE_FACTOR)]
)
async def test_a_turn_owes_more_rest_the_more_are_open(others: int, rest: float) -> None:
    owed: list[float] = []

    class Watched(Throttle):
        def turn(self, rest: float) -> Any:
            owed.append(rest)
            return nullcontext()

    streams = OpenStreams(maximum=200, max_per_key=200)
    async with AsyncExitStack() as stack:
        for _ in range(others + 1):
            await stack.enter_async_context(following(streams))
        async with streams.turn(Watched()):
            pass
    assert owed == [pytest.approx(rest)]


async def test_those_that_read_the_log_hold_up_none_that_keep_up() -> None:
    streams = OpenStreams(maximum=9, max_per_key=9)
    async with streams.turn(streams.from_log), asyncio.timeout(5), streams.turn(streams.from_memory):
        pass


class TestFrames:
    def event(self, position: int = 7, note: str = "") -> Recorded:
        data = f'{{"note":"{note}"}}'
        return Recorded(position, "id", "s", 1, "task_made", 1, data, "ann", None, "c", None, START, b"\1")

    def test_are_made_once_for_all_as_long_as_it_is_the_same_event(self) -> None:
        streams, first = OpenStreams(1, 1), self.event(note="first")
        made = streams.frame(first)
        assert streams.frame(first) is made
        # Of a log that was replaced, another event is at this position.
        assert b"other" in streams.frame(self.event(note="other"))

    def test_that_are_large_are_not_kept(self) -> None:
        streams, large = OpenStreams(1, 1), self.event(note="x" * module._MAX_CACHED_FRAME_BYTES)
        assert streams.frame(large) is not streams.frame(large)

    def test_are_kept_of_the_latest_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_MAX_CACHED_FRAMES", 10)
        streams = OpenStreams(1, 1)
        for position in range(1, 100):
            streams.frame(self.event(position))
            assert len(streams._frames) <= 10
        last = self.event(100)
        assert streams.frame(last) is streams.frame(last)

    def test_say_when_in_utc_and_what_in_the_letters_of_the_log(self) -> None:
        frame = OpenStreams(1, 1).frame(self.event(note="ä")).decode()
        assert frame.startswith("id: 7\nevent: task_made\ndata: {")
        assert frame.endswith("\n\n")
        assert '"data":{"note":"ä"}' in frame
        assert '"recorded_at":"2026-03-02T12:00:00Z"' in frame
        assert '"hash":"01"' in frame

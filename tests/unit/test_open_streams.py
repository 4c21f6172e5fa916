"""How many event streams may be open, how long they pause after a turn, and which frames are cached."""

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
from tests.unit.stories import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ONE, OTHER = Caller("operator", "2222222222"), Caller("operator", "3333333333")


@asynccontextmanager
async def open_stream(streams: OpenStreams, who: Caller = ANYBODY) -> AsyncIterator[asyncio.Task[None]]:
    """A task that has a stream open; it is cancelled when the block ends."""
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


async def refusal_code(streams: OpenStreams, who: Caller = ANYBODY) -> str:
    with pytest.raises(Problem) as refused:
        async with open_stream(streams, who):
            pass
    assert refused.value.body["retry_after_seconds"] == 5
    return refused.value.code


async def test_stream_beyond_the_maximum_is_rejected_until_another_ends() -> None:
    streams = OpenStreams(maximum=2, max_per_key=2)
    async with open_stream(streams), open_stream(streams):
        assert await refusal_code(streams) == "streams_full"
    async with open_stream(streams), open_stream(streams):
        assert await refusal_code(streams, ONE) == "streams_full"


async def test_streams_are_limited_per_key_but_not_per_caller_without_a_key() -> None:
    streams = OpenStreams(maximum=9, max_per_key=1)
    for _ in range(2):
        async with open_stream(streams, ONE), open_stream(streams, OTHER):
            assert await refusal_code(streams, ONE) == "too_many_streams"
        async with open_stream(streams), open_stream(streams):
            pass
    assert not streams._by_key


async def test_end_cancels_every_open_stream() -> None:
    streams = OpenStreams(maximum=9, max_per_key=9)
    async with open_stream(streams) as one, open_stream(streams, ONE) as other:
        streams.end()
        await asyncio.wait((one, other))
        assert one.cancelled()
        assert other.cancelled()


@pytest.mark.parametrize(
    ("other_streams", "pause_factor"),
    [(0, 0.0), (1, 0.1), (20, 2.0), (90, MAX_PAUSE_FACTOR), (95, MAX_PAUSE_FACTOR)],
)
async def test_pause_after_a_turn_grows_with_the_open_streams_up_to_a_maximum(
    other_streams: int, pause_factor: float
) -> None:
    pause_factors: list[float] = []

    class RecordingThrottle(Throttle):
        def turn(self, rest: float) -> Any:
            pause_factors.append(rest)
            return nullcontext()

    streams = OpenStreams(maximum=200, max_per_key=200)
    async with AsyncExitStack() as stack:
        for _ in range(other_streams + 1):
            await stack.enter_async_context(open_stream(streams))
        async with streams.turn(RecordingThrottle()):
            pass
    assert pause_factors == [pytest.approx(pause_factor)]


async def test_turn_for_the_log_does_not_block_turns_for_memory() -> None:
    streams = OpenStreams(maximum=9, max_per_key=9)
    async with streams.turn(streams.from_log), asyncio.timeout(5), streams.turn(streams.from_memory):
        pass


class TestFrames:
    def event(self, position: int = 7, note: str = "") -> Recorded:
        data = f'{{"note":"{note}"}}'
        return Recorded(position, "id", "s", 1, "task_made", 1, data, "ann", None, "c", None, START, b"\1")

    def test_frame_is_cached_until_another_event_has_its_position(self) -> None:
        streams, first = OpenStreams(1, 1), self.event(note="first")
        cached = streams.frame(first)
        assert streams.frame(first) is cached
        # After the log was replaced, another event can be at this position.
        assert b"other" in streams.frame(self.event(note="other"))

    def test_large_frame_is_not_cached(self) -> None:
        streams, large = OpenStreams(1, 1), self.event(note="x" * module._MAX_CACHED_FRAME_BYTES)
        assert streams.frame(large) is not streams.frame(large)

    def test_cache_is_bounded_and_has_the_latest_frame(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_MAX_CACHED_FRAMES", 10)
        streams = OpenStreams(1, 1)
        for position in range(1, 100):
            streams.frame(self.event(position))
            assert len(streams._frames) <= 10
        last = self.event(100)
        assert streams.frame(last) is streams.frame(last)

    def test_frame_has_the_time_in_utc_and_the_data_as_stored(self) -> None:
        frame = OpenStreams(1, 1).frame(self.event(note="ä")).decode()
        assert frame.startswith("id: 7\nevent: task_made\ndata: {")
        assert frame.endswith("\n\n")
        assert '"data":{"note":"ä"}' in frame
        assert '"recorded_at":"2026-03-02T12:00:00Z"' in frame
        assert '"hash":"01"' in frame

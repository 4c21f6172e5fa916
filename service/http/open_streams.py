"""The open event streams: how many there may be, and their share of the process's time.

Streams take turns, and each turn is followed by a rest in proportion to its length. The more streams are
open, the longer the rest, so that a thousand of them do not starve commands: streams then fall behind a
little and get larger portions at a time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import TYPE_CHECKING

import orjson

from service.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager

    from eventstore.recorded import Recorded
    from service.callers import Caller

MAX_PAUSE_FACTOR = 9.0
"""The longest rest, as a multiple of the turn before it; reached with 91 open streams."""

_MIN_PAUSE_SECONDS = 0.005
"""Rests accumulate to this, because a shorter sleep would take this long as well."""

_MAX_PAUSE_SECONDS = 1.0
"""The longest rest after one turn: a long turn has mostly waited for the database, not used CPU time."""

_MAX_CACHED_FRAMES = 2_000
_MAX_CACHED_FRAME_BYTES = 16 * 1024


class Throttle:
    """Turns, one at a time and in the order in which they were requested, with pauses between them."""

    def __init__(self) -> None:
        self._taken = asyncio.Lock()
        self._pause_until = 0.0

    @asynccontextmanager
    async def turn(self, rest: float) -> AsyncIterator[None]:
        """Hold the turn during the block; afterwards pause for `rest` times the block's duration.

        The next turn waits for the pause. The one that ended goes on at once, even if it is cancelled.
        """
        async with self._taken:
            if (left := self._pause_until - monotonic()) >= _MIN_PAUSE_SECONDS:
                await asyncio.sleep(left)
            began = monotonic()
            try:
                yield
            finally:
                now = monotonic()
                pause = min(rest * (now - began), _MAX_PAUSE_SECONDS)
                self._pause_until = max(self._pause_until, now) + pause


class OpenStreams:
    """The open event streams, limited in number."""

    def __init__(self, maximum: int, max_per_key: int) -> None:
        self._maximum = maximum
        self._max_per_key = max_per_key
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self._by_key = Counter[str]()
        self._frames: dict[int, tuple[Recorded, bytes]] = {}
        self.from_memory, self.from_log = Throttle(), Throttle()

    @contextmanager
    def count_open(self, who: Caller) -> Iterator[None]:
        """Count this task's stream for as long as it is open. `end` cancels the task.

        Raises:
            Problem: the limit is reached.
        """
        task = asyncio.current_task()
        assert task
        with self.admit(who):
            self._tasks.add(task)
            try:
                yield
            finally:
                self._tasks.discard(task)

    @contextmanager
    def admit(self, who: Caller) -> Iterator[None]:
        """Count a stream, or a request that stays open like one but takes no turns, while it is open.

        Raises:
            Problem: the limit is reached.
        """
        if self._open >= self._maximum:
            raise Problem("streams_full", f"{self._maximum} are open in total", retry_after_seconds=5)
        if who.key_id and self._by_key[who.key_id] >= self._max_per_key:
            raise Problem(
                "too_many_streams", f"{self._max_per_key} are open with this key", retry_after_seconds=5
            )
        self._open += 1
        if who.key_id:
            self._by_key[who.key_id] += 1
        try:
            yield
        finally:
            self._open -= 1
            if who.key_id:
                self._by_key[who.key_id] -= 1
                if not self._by_key[who.key_id]:
                    del self._by_key[who.key_id]

    def turn(self, throttle: Throttle) -> AbstractAsyncContextManager[None]:
        """Return one stream's turn to fetch its next events."""
        return throttle.turn(min(MAX_PAUSE_FACTOR, (len(self._tasks) - 1) / 10))

    def frame(self, recorded: Recorded) -> bytes:
        """Return an event in wire format, cached for all streams as long as it is the same object."""
        kept = self._frames.get(recorded.position)
        if kept is not None and kept[0] is recorded:
            return kept[1]
        made = frame(recorded)
        if len(made) <= _MAX_CACHED_FRAME_BYTES:
            if len(self._frames) >= _MAX_CACHED_FRAMES:
                self._frames.clear()
            self._frames[recorded.position] = (recorded, made)
        return made

    def end(self) -> None:
        """End all of them because the service stops."""
        for task in list(self._tasks):
            task.cancel()


def frame(recorded: Recorded) -> bytes:
    """Return an event in wire format."""
    data = orjson.dumps(
        {
            "position": recorded.position,
            "id": recorded.id,
            "stream": recorded.stream,
            "version": recorded.version,
            "type": recorded.type,
            "schema_version": recorded.schema_version,
            "data": orjson.Fragment(recorded.data),
            "actor": recorded.actor,
            "caused_by": recorded.caused_by,
            "correlation_id": recorded.correlation_id,
            "idempotency_key": recorded.idempotency_key,
            "recorded_at": recorded.recorded_at,
            "hash": recorded.hash.hex(),
        },
        option=orjson.OPT_UTC_Z,
    )
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (recorded.position, recorded.type.encode(), data)

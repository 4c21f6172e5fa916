"""The event streams that are open: how many there may be, and how much of the time they have.

They take their turns one after another, and after each there is a rest in proportion to what it took.
The more streams are open, the longer that is, so that a thousand of them do not take the time of those
who send commands: what they cannot be sent at once they are sent later, larger portions at a time.
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

MOST_REST = 9.0
"""How long the longest rest is, as a multiple of the turns before it: where 91 streams are open or more."""

_REST_SECONDS = 0.005
"""Rests are saved up to this, because a shorter one would take this long as well."""

_LONGEST_REST_SECONDS = 1.0
"""Of one turn: one that waited for the database was no work of ours."""

_KEPT_FRAMES = 2_000
_KEPT_FRAME_BYTES = 16 * 1024


class Lane:
    """Turns, one at a time and in the order in which they were asked for."""

    def __init__(self) -> None:
        self._taken = asyncio.Lock()
        self._rests_until = 0.0

    @asynccontextmanager
    async def turn(self, rest: float) -> AsyncIterator[None]:
        """Has the lane for the block; after it the lane rests for so many times as long as the block took.

        The next one waits for that: whoever has had its turn goes on at once, also where it is cancelled.
        """
        async with self._taken:
            if (left := self._rests_until - monotonic()) >= _REST_SECONDS:
                await asyncio.sleep(left)
            began = monotonic()
            try:
                yield
            finally:
                now = monotonic()
                owed = min(rest * (now - began), _LONGEST_REST_SECONDS)
                self._rests_until = max(self._rests_until, now) + owed


class OpenStreams:
    """The event streams that are open, as many as may be."""

    def __init__(self, most: int, most_per_key: int) -> None:
        self._most = most
        self._most_per_key = most_per_key
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_key = Counter[str]()
        self._frames: dict[int, tuple[Recorded, bytes]] = {}
        self.from_memory, self.from_log = Lane(), Lane()

    @contextmanager
    def one_more(self, who: Caller) -> Iterator[None]:
        """Counts this task's stream for as long as it is open.

        Raises:
            Problem: there are as many as may be.
        """
        if len(self._tasks) >= self._most:
            raise Problem("streams_full", f"{self._most} are open in all", retry_after_seconds=5)
        if who.key_id and self._by_key[who.key_id] >= self._most_per_key:
            raise Problem("too_many_streams", f"{self._most_per_key} are open", retry_after_seconds=5)
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        if who.key_id:
            self._by_key[who.key_id] += 1
        try:
            yield
        finally:
            self._tasks.discard(task)
            if who.key_id:
                self._by_key[who.key_id] -= 1
                if not self._by_key[who.key_id]:
                    del self._by_key[who.key_id]

    def turn(self, lane: Lane) -> AbstractAsyncContextManager[None]:
        """One stream's turn to take what is next for it."""
        return lane.turn(min(MOST_REST, (len(self._tasks) - 1) / 10))

    def frame(self, recorded: Recorded) -> bytes:
        """An event as it goes over the wire: made once for all streams, as long as it is the same event."""
        kept = self._frames.get(recorded.position)
        if kept is not None and kept[0] is recorded:
            return kept[1]
        made = frame(recorded)
        if len(made) <= _KEPT_FRAME_BYTES:
            if len(self._frames) >= _KEPT_FRAMES:
                self._frames.clear()
            self._frames[recorded.position] = (recorded, made)
        return made

    def end(self) -> None:
        """Ends all of them: the service stops."""
        for task in list(self._tasks):
            task.cancel()


def frame(recorded: Recorded) -> bytes:
    """An event as it goes over the wire."""
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

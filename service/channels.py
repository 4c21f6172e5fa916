"""Who follows what: the latest events, sorted once for all followers that want the same of them.

Each event is held against the filters, not each follower against the event: a thousand followers of a
thousand agents cost an event a few look-ups, and only those are woken that it is for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import orjson

from eventstore.listener import Hints
from eventstore.lookup import Filter
from eventstore.recorded import Recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.tail import Tail

_TRIM_AFTER = 1_000


class Found(NamedTuple):
    """What passed a filter, and how far was looked."""

    events: Sequence[Recorded]
    upto: int
    """There is nothing else up to this position."""


class Channel:
    """Positions of the latest events that pass one filter."""

    def __init__(self, tail: Tail, since: int) -> None:
        self.moved = Hints()
        """Wakes when there are new ones."""
        self.followers = 0
        self._tail = tail
        self._since = since
        self._positions: list[int] = []

    def add(self, position: int) -> None:
        """Takes in the next one; lets those go that are in memory no more."""
        positions = self._positions
        if len(positions) >= _TRIM_AFTER and len(positions) > 2 * len(self._tail):
            del positions[: bisect_left(positions, self._tail.first)]
        positions.append(position)

    def start_afresh(self) -> None:
        """The log was replaced: nothing of it was seen so far."""
        self._since = 0
        self._positions.clear()
        self.moved.wake()

    async def after(self, position: int, limit: int) -> Found | None:
        """The next ones after a position, at most `limit`, readable; None where they have to be read.

        Raises:
            StoreUnavailable, StoreBusy: the keys of sealed ones cannot be asked for.
        """
        upto = self._tail.last
        if position < max(self._since, self._tail.first - 1):
            return None
        start = bisect_right(self._positions, position)
        wanted = self._positions[start : start + limit]
        if len(wanted) == limit:
            upto = wanted[-1]
        events = await self._tail.pick(wanted)
        return None if events is None else Found(events, max(position, upto))


class Channels:
    """One channel for each filter that somebody follows."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._channels: dict[Filter, Channel] = {}

    @contextmanager
    def following(self, wanted: Filter) -> Iterator[Channel]:
        """The channel of a filter without times, kept for as long as the block."""
        channel = self._channels.get(wanted)
        if channel is None:
            channel = self._channels[wanted] = Channel(self._tail, self._tail.last)
        channel.followers += 1
        try:
            yield channel
        finally:
            channel.followers -= 1
            if not channel.followers:
                del self._channels[wanted]

    def extend(self, recorded: Sequence[Recorded]) -> None:
        """Takes in what was committed, and wakes those whom it is for."""
        self._tail.extend(recorded)
        if not self._channels:
            return
        woken: dict[Channel, None] = {}
        for one in recorded:
            for wanted in _filters(one):
                if channel := self._channels.get(wanted):
                    channel.add(one.position)
                    woken[channel] = None
        for channel in woken:
            channel.moved.wake()

    def start_afresh(self) -> None:
        """The log was replaced: nothing of what is in memory may be in it. Wakes everybody."""
        self._tail.start_afresh()
        for channel in self._channels.values():
            channel.start_afresh()


def _filters(recorded: Recorded) -> Iterator[Filter]:
    """All that an event passes."""
    agent = agent_of(recorded)
    for agents in (None, agent) if agent is not None else (None,):
        for stream in (None, recorded.stream):
            yield Filter(None, stream, agents)
            yield Filter(recorded.type, stream, agents)


def agent_of(recorded: Recorded) -> str | None:
    """Whose event it is: what the column `agent` of the log holds."""
    data = orjson.loads(recorded.data)
    for name in ("agent", "assigned_agent", "handled_by"):
        if data.get(name) is not None:
            return str(data[name])
    return None

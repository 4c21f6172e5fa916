"""Dispatch of the latest events to followers, filtered once for all followers with the same filter.

The filters that an event passes are looked up, instead of every follower checking the event. With a
thousand followers of a thousand agents, an event costs a few look-ups, and wakes only those that want it.
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


class FilteredEvents(NamedTuple):
    """The events that passed a filter, and up to where."""

    events: Sequence[Recorded]
    upto: int
    """No other events up to this position pass the filter."""


class Channel:
    """Positions of the latest events that pass one filter."""

    def __init__(self, tail: Tail, since: int) -> None:
        self.advanced = Hints()
        """Wakes when there are new ones."""
        self.followers = 0
        self._tail = tail
        self._since = since
        self._positions: list[int] = []

    def add(self, position: int) -> None:
        """Add the next position; drop those of events that are no longer in memory."""
        positions = self._positions
        if len(positions) >= _TRIM_AFTER and len(positions) > 2 * len(self._tail):
            del positions[: bisect_left(positions, self._tail.first)]
        positions.append(position)

    def reset(self) -> None:
        """Reset after the log was replaced: nothing of the new one was seen yet."""
        self._since = 0
        self._positions.clear()
        self.advanced.wake()

    async def after(self, position: int, limit: int) -> FilteredEvents | None:
        """Return up to `limit` next events after a position, revealed; None if they are not in memory.

        Raises:
            StoreUnavailable, StoreBusy: the keys of sealed events cannot be read.
        """
        upto = self._tail.last
        if position < max(self._since, self._tail.first - 1):
            return None
        start = bisect_right(self._positions, position)
        found = self._positions[start : start + limit]
        if len(found) == limit:
            upto = found[-1]
        events = await self._tail.events_at(found)
        return None if events is None else FilteredEvents(events, max(position, upto))


class Channels:
    """One channel for each filter that has followers."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._channels: dict[Filter, Channel] = {}

    @contextmanager
    def subscribe(self, event_filter: Filter) -> Iterator[Channel]:
        """Yield the channel of a filter, which must have no times; keep it during the block."""
        channel = self._channels.get(event_filter)
        if channel is None:
            channel = self._channels[event_filter] = Channel(self._tail, self._tail.last)
        channel.followers += 1
        try:
            yield channel
        finally:
            channel.followers -= 1
            if not channel.followers:
                del self._channels[event_filter]

    def extend(self, recorded: Sequence[Recorded]) -> None:
        """Add committed events, and wake the followers that want them."""
        self._tail.extend(recorded)
        if not self._channels:
            return
        notified: dict[Channel, None] = {}
        for one in recorded:
            for event_filter in _filters(one):
                if channel := self._channels.get(event_filter):
                    channel.add(one.position)
                    notified[channel] = None
        for channel in notified:
            channel.advanced.wake()

    def reset(self) -> None:
        """Discard everything after the log was replaced, and wake all followers."""
        self._tail.reset()
        for channel in self._channels.values():
            channel.reset()


def _filters(recorded: Recorded) -> Iterator[Filter]:
    """Yield all filters that an event passes."""
    agent = agent_of(recorded)
    for agents in (None, agent) if agent is not None else (None,):
        for stream in (None, recorded.stream):
            yield Filter(None, stream, agents)
            yield Filter(recorded.type, stream, agents)


def agent_of(recorded: Recorded) -> str | None:
    """Return the agent of an event, as in the log's column `agent`."""
    data = orjson.loads(recorded.data)
    for name in ("agent", "assigned_agent", "handled_by"):
        if data.get(name) is not None:
            return str(data[name])
    return None

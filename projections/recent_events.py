"""The events that this process has just appended or folded, kept in memory for its projector.

A page kept here need not be read and decoded again. It is not a second source of truth: whoever writes rows
from it has the log confirm in the same transaction that it holds exactly this page. The hash of the last
event is enough for that, as a hash covers everything before it (`eventstore.chain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eventstore.events import AnyEvent
from eventstore.log import PAGE_EVENTS
from eventstore.recorded import Recorded

MAX_BYTES = 8 * 1024 * 1024
"""Once there is more than this, or more than a page, everything is dropped and later read from the log."""


class Page(NamedTuple):
    """Consecutive events, as stored and decoded."""

    recorded: Sequence[Recorded]
    events: Sequence[AnyEvent]


class RecentEvents:
    """Consecutive events up to the last one known to this process, as long as they are taken in time."""

    def __init__(self) -> None:
        self._recorded: list[Recorded] = []
        self._events: list[AnyEvent] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._recorded)

    def extend(self, recorded: Sequence[Recorded], events: Sequence[AnyEvent]) -> None:
        """Add a committed batch. If it does not follow the events kept so far, drop those."""
        if self._recorded and recorded[0].position != self._recorded[-1].position + 1:
            self.clear()
        self._recorded += recorded
        self._events += events
        self._bytes += sum(len(one.data) for one in recorded)
        if len(self._recorded) > PAGE_EVENTS or self._bytes > MAX_BYTES:
            self.clear()

    def take_after(self, after: int) -> Page | None:
        """Take all events after `after`; return None if there are none, or if the first one is missing."""
        if not self._recorded or self._recorded[0].position > after + 1:
            return None
        known = after + 1 - self._recorded[0].position
        page = Page(self._recorded[known:], self._events[known:])
        self.clear()
        return page if page.recorded else None

    def clear(self) -> None:
        """Drop everything."""
        self._recorded, self._events, self._bytes = [], [], 0

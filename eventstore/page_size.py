"""Adapt the number of events in a page: enough to be efficient, few enough to bound its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import AnyRecorded

PAGE_CHARACTERS = 4_000_000
"""The target maximum for the payloads of a page. In memory they take slightly more, and several times as
much once decoded; a few pages are in memory at once."""

INITIAL_EVENTS = 100
"""The size of the first page, before anything is known about the size of events."""

MIN_EVENTS = 10
"""The minimum size of a page, so that large events are not read one by one."""


class PageSizer:
    """Measures each page to decide how many events the next one should have."""

    def __init__(
        self,
        maximum: int,
        *,
        first: int | None = None,
        minimum: int | None = None,
        characters: int | None = None,
    ) -> None:
        self.events = min(first or INITIAL_EVENTS, maximum)
        """How many to read."""
        self._maximum = maximum
        self._minimum = minimum or MIN_EVENTS
        self._characters = characters or PAGE_CHARACTERS

    def adapt(self, page: Sequence[AnyRecorded]) -> None:
        """Adapt to the page that was read last: an event can be a hundred bytes or a megabyte."""
        self.events = min(self._fitting(page), 2 * self.events, self._maximum)

    def shrink_to_fit(self, coming: Sequence[AnyRecorded]) -> None:
        """Shrink to fit events that will have to be read: they can be larger than those read last."""
        self.events = min(self.events, self._fitting(coming))

    def _fitting(self, page: Sequence[AnyRecorded]) -> int:
        characters = sum(len(recorded.data) for recorded in page)
        return (
            max(self._characters * len(page) // characters, self._minimum) if characters else self._maximum
        )

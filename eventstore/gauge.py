"""How many events to read at once: so many that a page pays, and so few that it stays small in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import AnyRecorded

PAGE_CHARACTERS = 4_000_000
"""So much of payloads a page should not go beyond. In memory it is some bytes more, and several times that
where the payloads are decoded; a few pages are there at once."""

FIRST_EVENTS = 100
"""How many are read before anything is known of their size."""

FEWEST_EVENTS = 10
"""So many are always read, so that large ones do not come one by one."""


class Gauge:
    """Measures each page, and says from it how many events the next one should have."""

    def __init__(
        self,
        most: int,
        *,
        first: int | None = None,
        fewest: int | None = None,
        characters: int | None = None,
    ) -> None:
        self.events = min(first or FIRST_EVENTS, most)
        """How many to read."""
        self._most = most
        self._fewest = fewest or FEWEST_EVENTS
        self._characters = characters or PAGE_CHARACTERS

    def learn(self, page: Sequence[AnyRecorded]) -> None:
        """Goes by what was read last: an event can be a hundred bytes, or a megabyte."""
        self.events = min(self._fitting(page), 2 * self.events, self._most)

    def beware(self, coming: Sequence[AnyRecorded]) -> None:
        """Goes by what will have to be read: it can be larger than what was read last."""
        self.events = min(self.events, self._fitting(coming))

    def _fitting(self, page: Sequence[AnyRecorded]) -> int:
        characters = sum([len(recorded.data) for recorded in page])
        return max(self._characters * len(page) // characters, self._fewest) if characters else self._most

"""How many commands make a batch, so that deciding and appending go on beside each other.

While one batch is on its way the next is decided (`service.writing.ahead`). Where all that wait went
together, nothing would be left to decide meanwhile: the callers of one batch ask again when it is answered,
and the database would wait for the decisions and they for the database. So a batch leaves something behind,
unless appending takes so long that deciding cannot fill the time: then everything goes at once, and shares
one commit.
"""

from __future__ import annotations

from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from service.writing.waiting import MAX_BATCH_COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

PLENTY = 256
"""Where so many share a commit, its cost hardly counts any more."""

MOST_REST_SECONDS = 0.02
"""For so long at most a batch waits for others to join it."""

_NEWEST_COUNTS = 0.2
_GROWS_BY = 1.02
_FIRST_GUESS_SECONDS = 20e-6
_LEAST_SECONDS = 1e-6
"""A decision takes at least as long, whatever the clock says."""


class Pace:
    """What the last batches took, and what follows for the next one."""

    def __init__(self) -> None:
        self._a_decision = _FIRST_GUESS_SECONDS
        self._an_append = 0.0

    @contextmanager
    def deciding(self, commands: int) -> Iterator[None]:
        """Takes note of how long it takes to decide so many."""
        began = monotonic()
        yield
        if commands:
            self.decided(commands, monotonic() - began)

    def decided(self, commands: int, seconds: float) -> None:
        """Takes note of how long it took to decide so many."""
        each = max(_LEAST_SECONDS, seconds / commands)
        self._a_decision += _NEWEST_COUNTS * (each - self._a_decision)

    def appended(self, seconds: float) -> None:
        """Takes note of a round trip."""
        # The quickest of late: the others were waited for longer, because this process was busy.
        self._an_append = min(seconds, self._an_append * _GROWS_BY or seconds)

    def first(self, waiting: int) -> int:
        """How many of those that wait are to be decided now, before anything is on its way."""
        return max(self._at_least(), min(PLENTY, -(-waiting // 2)))

    def beside(self) -> int:
        """How many are to be decided at most while others are on their way."""
        return max(self._at_least(), PLENTY)

    def rest_seconds(self, callers: int) -> float:
        """For how long a batch that was decided ahead waits for those who are being answered to ask again.

        Not at all where so many are decided in the time of an append. Where they are not, they would be in
        two batches for ever, each waiting for the other one's commit.
        """
        return min(self._an_append / 8, MOST_REST_SECONDS) if callers < self._at_least() else 0.0

    def _at_least(self) -> int:
        # A decision is about half of what a command takes, with its caller's asking and being told.
        return min(max(1, int(self._an_append / (2 * self._a_decision))), MAX_BATCH_COMMANDS)

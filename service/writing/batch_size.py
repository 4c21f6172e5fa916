"""Choose how many commands make a batch, so that deciding and appending overlap.

While one batch is in flight, the next is decided (`service.writing.pipeline`). If a batch took everything
in the queue, nothing would be left to decide meanwhile: its callers ask again only when it is answered, and
the database and the decisions would wait for each other in turn. So a batch leaves some commands behind,
unless appending takes so long that deciding cannot fill the time: then everything shares one commit.
"""

from __future__ import annotations

from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from service.writing.command_queue import MAX_BATCH_COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

AMORTIZED_COMMANDS = 256
"""When this many commands share a commit, its cost per command is negligible."""

MAX_LINGER_SECONDS = 0.02
"""How long a batch waits at most for others to join it."""

_SMOOTHING = 0.2
_MINIMUM_GROWTH = 1.02
_INITIAL_SECONDS = 20e-6
_MIN_SECONDS = 1e-6
"""Lower bound for the time of a decision, whatever the clock says."""


class BatchSizer:
    """Measures what recent batches took, and derives the size of the next one."""

    def __init__(self) -> None:
        self._decision_seconds = _INITIAL_SECONDS
        self._append_seconds = 0.0

    @contextmanager
    def timing_decisions(self, commands: int) -> Iterator[None]:
        """Time the deciding of so many commands."""
        began = monotonic()
        yield
        if commands:
            self.record_decisions(commands, monotonic() - began)

    def record_decisions(self, commands: int, seconds: float) -> None:
        """Record how long deciding so many commands took."""
        each = max(_MIN_SECONDS, seconds / commands)
        self._decision_seconds += _SMOOTHING * (each - self._decision_seconds)

    def record_append(self, seconds: float) -> None:
        """Record the duration of an append's round trip."""
        # A slowly growing minimum: slower ones include time in which this process was busy.
        self._append_seconds = min(seconds, self._append_seconds * _MINIMUM_GROWTH or seconds)

    def initial_size(self, queued: int) -> int:
        """Return how many of the waiting commands to decide now, while nothing is in flight."""
        return max(self._minimum(), min(AMORTIZED_COMMANDS, -(-queued // 2)))

    def pipelined_size(self) -> int:
        """Return how many commands to decide at most while a batch is in flight."""
        return max(self._minimum(), AMORTIZED_COMMANDS)

    def linger_seconds(self, callers: int) -> float:
        """Return how long a batch decided ahead waits for callers who were just answered to ask again.

        Zero if deciding for so many callers fills the time of an append. Otherwise they would stay split
        into two batches for good, each waiting for the other's commit.
        """
        return min(self._append_seconds / 8, MAX_LINGER_SECONDS) if callers < self._minimum() else 0.0

    def _minimum(self) -> int:
        # Deciding is about half of a command's cost; the rest is taking the request and answering it.
        return min(max(1, int(self._append_seconds / (2 * self._decision_seconds))), MAX_BATCH_COMMANDS)

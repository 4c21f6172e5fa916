"""The writer's counters and histograms. Cheap, as every command updates them; see `service.metrics`."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

from eventstore import codec
from eventstore.events import RunFinished, RunMissed, RunSkipped
from service.requests import (
    CommandFailed,
    OutcomeUnknown,
    QueueFull,
    Stopping,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded
    from service.commands import AnyCommand
    from service.requests import Outcome
    from service.writing.batch import Batch

JOB_OUTCOMES = ("succeeded", "failed", "skipped", "missed", "lost")
"""How a tick of a job can end."""

_WITHOUT_OUTCOME: dict[type[BaseException], str] = {
    QueueFull: "queue_full",
    Stopping: "stopping",
    Unavailable: "unavailable",
    OutcomeUnknown: "outcome_unknown",
    CommandFailed: "failed",
}
_ENDS_A_RUN = frozenset({RunFinished.type, RunSkipped.type, RunMissed.type})


class Distribution:
    """A histogram: how many values fell between the bounds."""

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class WriterStats:
    """Counts since the process started. Each process counts only what it appends itself."""

    def __init__(self) -> None:
        self.commands = Counter[tuple[str, str]]()
        """Commands by type and outcome: accepted, repeated, a refusal's code, or why there was none."""
        self.events = Counter[str]()
        """Appended events by type."""
        self.runs = Counter[str](dict.fromkeys(JOB_OUTCOMES, 0))
        """Ended runs by outcome."""
        self.batch_commands = Distribution(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
        self.batch_events = Distribution(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
        self.commit_seconds = Distribution(
            0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10
        )
        self.lock_wait_seconds = Distribution(
            0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5
        )
        self.poll_rescues = 0
        """How often polling found events that no notification had announced."""

    def command(self, command: AnyCommand, came_of: Outcome | Exception) -> None:
        """Count a command whose caller is being answered."""
        if isinstance(came_of, Exception):
            word = _WITHOUT_OUTCOME.get(type(came_of), "failed")
        elif came_of.refusal:
            word = came_of.refusal.code
        else:
            word = "repeated" if came_of.repeated else "accepted"
        self.commands[type(command).__name__, word] += 1

    def lock(self, waited_seconds: float | None) -> None:
        """Count the wait for the log's lock, if it was taken, whether or not anything was appended."""
        if waited_seconds is not None:
            self.lock_wait_seconds.add(waited_seconds)

    def batch(self, batch: Batch, seconds: float) -> None:
        """Count a committed batch, and the seconds its round trip took."""
        self.batch_commands.add(len(batch.tickets))
        self.batch_events.add(len(batch.recorded))
        self.commit_seconds.add(seconds)
        self._count(batch.recorded)

    def _count(self, events: Sequence[Recorded]) -> None:
        types = [recorded.type for recorded in events]
        self.events.update(types)
        if _ENDS_A_RUN.isdisjoint(types):
            return
        for recorded in events:
            if recorded.type in _ENDS_A_RUN:
                match codec.decode(recorded):
                    case RunFinished(outcome=outcome):
                        self.runs[outcome] += 1
                    case RunSkipped():
                        self.runs["skipped"] += 1
                    case RunMissed():
                        self.runs["missed"] += 1

"""Wakes those that wait for a message to arrive in an agent's inbox.

The recipients of a message are looked up, instead of every waiter checking it. So a message costs the same
however many agents wait, and wakes only those that it is for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson

from eventstore.events import MessageSent
from eventstore.listener import Hints

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventstore.recorded import Recorded

MAX_CONCURRENT_READS = 4
"""How many of those that a message has woken read their inboxes at once: a message to all can wake a
thousand, and other readers must get a connection too."""


class Arrivals:
    """The agents whose inboxes are watched."""

    def __init__(self) -> None:
        self.reading = asyncio.Semaphore(MAX_CONCURRENT_READS)
        self._hints: dict[str, Hints] = {}
        self._watchers = Counter[str]()

    @contextmanager
    def watch(self, agent: str) -> Iterator[Hints]:
        """Yield hints that wake when a message to the agent, or to all, has been recorded."""
        hints = self._hints.setdefault(agent, Hints())
        self._watchers[agent] += 1
        try:
            yield hints
        finally:
            self._watchers[agent] -= 1
            if not self._watchers[agent]:
                del self._watchers[agent], self._hints[agent]

    def observe(self, recorded: Sequence[Recorded]) -> None:
        """Wake those that committed events have messages for. Recipients are never sealed."""
        if not self._hints:
            return
        for one in recorded:
            if one.type == MessageSent.type:
                for hints in self._of(orjson.loads(one.data)["to_agent"]):
                    hints.wake(one.position)

    def _of(self, to_agent: str | None) -> list[Hints]:
        if to_agent is None:
            return list(self._hints.values())
        return [self._hints[to_agent]] if to_agent in self._hints else []

    def reset(self) -> None:
        """Wake all, who may not find anything: the log was replaced, or the service stops."""
        for hints in self._hints.values():
            hints.reset()
            hints.wake()

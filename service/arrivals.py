"""Wakes those that wait for a message to arrive in an agent's inbox.

The recipients of a message are looked up, instead of every waiter checking it. So a message costs the same
however many agents wait, and wakes only those that it is for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import orjson

from eventstore.errors import StoreUnavailable
from eventstore.events import MessageSent
from eventstore.listener import Hints

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from eventstore.recorded import Recorded

MAX_CONCURRENT_READS = 4
"""How many requests that wait read their inboxes at once: a message to all can wake a thousand, and other
readers must get a connection too."""

MIN_TURN_SECONDS = 5.0
"""How long a request waits for its turn at least: as long as any reader waits for a connection."""


class Arrivals:
    """The agents whose inboxes are watched."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(MAX_CONCURRENT_READS)
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

    @asynccontextmanager
    async def turn(self, seconds: float) -> AsyncIterator[None]:
        """Hold one of the few turns to read an inbox during the block.

        Raises:
            StoreUnavailable: none became free within `seconds`, or `MIN_TURN_SECONDS` if that is longer.
        """
        try:
            async with asyncio.timeout(max(seconds, MIN_TURN_SECONDS)):
                await self._turns.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("no connection to read on") from error
        try:
            yield
        finally:
            self._turns.release()

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

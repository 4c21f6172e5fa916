"""Deduplicates repeated calls.

The orchestrator repeats a call when its answer was lost or late. The second call waits for the first, or
gets its answer, including the reported tokens. Work that failed is done again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from typing import Any

T = TypeVar("T")


class Deduplicator(Generic[T]):
    """The most recent answers, by call."""

    def __init__(self, remembered: int = 1_000) -> None:
        self._remembered = remembered
        self._tasks: OrderedDict[Hashable, asyncio.Task[T]] = OrderedDict()

    async def once(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work, unless it was done or is in progress under this key; return its result."""
        task = self._tasks.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._tasks[key] = asyncio.create_task(work())
            self._evict_oldest()
        # A cancelled caller does not cancel the work: a repeat may still want the result.
        return await asyncio.shield(task)

    def _evict_oldest(self) -> None:
        for key in list(self._tasks)[: max(0, len(self._tasks) - self._remembered)]:
            if self._tasks[key].done():
                del self._tasks[key]

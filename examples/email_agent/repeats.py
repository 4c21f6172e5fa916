"""Repeated calls do their work once.

The orchestrator calls again when an answer was lost or late. The second call waits for the work of the
first, or is given its answer, reported tokens included; work that failed is done again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from typing import Any

T = TypeVar("T")


class Repeats(Generic[T]):
    """The newest answers, by what they answer."""

    def __init__(self, remembered: int = 1_000) -> None:
        self._remembered = remembered
        self._tasks: OrderedDict[Hashable, asyncio.Task[T]] = OrderedDict()

    async def once(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Does the work, unless it was or is being done under this key."""
        task = self._tasks.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._tasks[key] = asyncio.create_task(work())
            self._forget_the_oldest()
        # Whoever waits may go away; the work goes on for whoever asks again.
        return await asyncio.shield(task)

    def _forget_the_oldest(self) -> None:
        for key in list(self._tasks)[: max(0, len(self._tasks) - self._remembered)]:
            if self._tasks[key].done():
                del self._tasks[key]

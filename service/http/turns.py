"""Work that takes seconds: a few at a time, and a few more that wait for their turn."""

from __future__ import annotations

import asyncio

from service.http.problems import Problem

AT_ONCE = 2
MAX_WAITING = 8


class Turns:
    """As an async context: the time of one piece of such work.

    Raises:
        Problem: too many wait already.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._present = 0

    async def __aenter__(self) -> None:
        if self._present >= AT_ONCE + MAX_WAITING:
            raise Problem("queue_full", "too many such requests are waiting already", retry_after_seconds=5)
        self._present += 1
        try:
            await self._places.acquire()
        except BaseException:
            self._present -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self._places.release()
        self._present -= 1

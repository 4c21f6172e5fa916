"""Limit work that takes seconds: a few pieces at a time, with a short queue."""

from __future__ import annotations

import asyncio

from service.http.problems import Problem

MAX_CONCURRENT = 2
MAX_WAITING = 8


class ConcurrencyLimit:
    """An async context manager to hold during one piece of such work.

    Raises:
        Problem: the queue is full.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MAX_CONCURRENT)
        self._present = 0

    async def __aenter__(self) -> None:
        if self._present >= MAX_CONCURRENT + MAX_WAITING:
            raise Problem("queue_full", "too many such requests are already waiting", retry_after_seconds=5)
        self._present += 1
        try:
            await self._places.acquire()
        except BaseException:
            self._present -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self._places.release()
        self._present -= 1

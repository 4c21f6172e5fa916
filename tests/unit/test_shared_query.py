"""A look at the database that many wait for."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from service.reading import SharedQuery


async def test_is_one_for_all_who_wait_for_the_same() -> None:
    looks, waiter = 0, asyncio.Event()

    async def look() -> int:
        nonlocal looks
        looks += 1
        return 7

    shared = SharedQuery(look)
    assert await asyncio.gather(*(shared(waiter) for _ in range(5))) == [7] * 5
    assert looks == 1
    await shared(asyncio.Event())
    assert looks == 2


async def test_that_fails_is_told_to_all_who_wait() -> None:
    async def look() -> int:
        raise ConnectionError

    shared, waiter = SharedQuery(look), asyncio.Event()
    for answer in await asyncio.gather(*(shared(waiter) for _ in range(3)), return_exceptions=True):
        assert isinstance(answer, ConnectionError)


async def test_that_fails_when_everybody_has_gone_is_no_fault() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    begun, may_fail, failed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def look() -> int:
        begun.set()
        await may_fail.wait()
        failed.set()
        raise ConnectionError

    async def give_up(shared: SharedQuery[int]) -> None:
        asking = asyncio.create_task(shared(asyncio.Event()))
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    shared = SharedQuery(look)
    await give_up(shared)
    may_fail.set()
    await failed.wait()
    shared.discard()
    # The loop is told of it when the last who could ask for it lets go.
    await asyncio.sleep(0)
    gc.collect()
    assert told == []

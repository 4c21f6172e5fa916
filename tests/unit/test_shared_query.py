"""A query whose result is shared by all that wait for it."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from service.reading import SharedQuery


async def test_query_runs_once_for_all_that_wait_for_the_same() -> None:
    count, waiter = 0, asyncio.Event()

    async def query() -> int:
        nonlocal count
        count += 1
        return 7

    shared = SharedQuery(query)
    assert await asyncio.gather(*(shared(waiter) for _ in range(5))) == [7] * 5
    assert count == 1
    await shared(asyncio.Event())
    assert count == 2


async def test_failure_is_raised_for_all_that_wait() -> None:
    async def query() -> int:
        raise ConnectionError

    shared, waiter = SharedQuery(query), asyncio.Event()
    for answer in await asyncio.gather(*(shared(waiter) for _ in range(3)), return_exceptions=True):
        assert isinstance(answer, ConnectionError)


async def test_failure_is_not_reported_when_no_caller_waits_any_more() -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    started, may_fail, failed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def query() -> int:
        started.set()
        await may_fail.wait()
        failed.set()
        raise ConnectionError

    async def give_up(shared: SharedQuery[int]) -> None:
        task = asyncio.create_task(shared(asyncio.Event()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    shared = SharedQuery(query)
    await give_up(shared)
    may_fail.set()
    await failed.wait()
    shared.discard()
    # The loop reports an exception that nobody retrieved once its task is garbage collected.
    await asyncio.sleep(0)
    gc.collect()
    assert reports == []

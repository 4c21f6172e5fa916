"""Work that must not take longer than its caller can wait."""

from __future__ import annotations

import asyncio
import gc

import pytest

from service import background
from service.background import within
from tests.support.wait import eventually

SOON = 0.01


class Stubborn:
    """Work that takes its time to be cancelled, like a query whose server is stopped."""

    def __init__(self) -> None:
        self.cancelled, self.released, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.released.wait()
            raise ValueError("of no interest to anyone") from None
        finally:
            self.ended.set()


async def test_result_and_failure_are_passed_on() -> None:
    async def work(number: int) -> int:
        return 6 // number

    assert await within(1, work(2)) == 3
    with pytest.raises(ZeroDivisionError):
        await within(1, work(0))


async def test_work_that_is_given_up_is_not_waited_for_and_still_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stubborn = Stubborn()
    with pytest.raises(TimeoutError):
        await within(SOON, stubborn.work())
    await stubborn.cancelled.wait()
    assert not stubborn.ended.is_set()
    assert len(background._given_up) == 1
    stubborn.released.set()
    await eventually(lambda: not background._given_up)
    assert stubborn.ended.is_set()
    gc.collect()
    assert not caplog.records, "its exception was never retrieved"


async def test_work_ends_when_its_caller_is_cancelled() -> None:
    stubborn = Stubborn()
    caller = asyncio.create_task(within(60, stubborn.work()))
    known = asyncio.all_tasks()
    await eventually(lambda: asyncio.all_tasks() > known)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await stubborn.cancelled.wait()
    stubborn.released.set()
    await stubborn.ended.wait()

"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any, TypeVar, overload

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Value = TypeVar("Value")

_POLL_SECONDS = 0.02


@overload
async def eventually(
    check: Callable[[], Awaitable[Value]],
    *,
    within_seconds: float = ...,
    describe: str = ...,
    ignore: tuple[type[Exception], ...] = ...,
) -> Value: ...


@overload
async def eventually(
    check: Callable[[], Value],
    *,
    within_seconds: float = ...,
    describe: str = ...,
    ignore: tuple[type[Exception], ...] = ...,
) -> Value: ...


async def eventually(
    check: Callable[[], Any],
    *,
    within_seconds: float = 10.0,
    describe: str = "",
    ignore: tuple[type[Exception], ...] = (),
) -> Any:
    """Call `check` until its result is true, and return that; fail the test after `within_seconds`.

    An exception listed in `ignore` counts as "not yet", such as a connection that is still refused.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        last: object
        try:
            outcome = check()
            value = await outcome if inspect.isawaitable(outcome) else outcome
        except ignore as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() > deadline:
            what = describe or getattr(check, "__qualname__", repr(check))
            pytest.fail(f"not within {within_seconds:g} s: {what}; last seen: {last!r}")
        await asyncio.sleep(_POLL_SECONDS)

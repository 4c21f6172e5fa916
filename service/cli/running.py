"""Runs what a command does, until it is done or a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

COLLECT_AFTER = (50_000, 50, 100)
"""Thresholds of Python's garbage collector (gc.set_threshold). By default it looks through the state in
memory again and again, while everybody waits; and what is made here has next to no cycles."""

_SAID_AGAIN_AFTER_SECONDS = 1.0
"""A second signal means "at once", unless it comes with the first: `timeout` sends it to the group, too."""

_STUCK_AFTER_SECONDS = 1.5
"""How long a command may take to hear of a signal, as while it waits for whoever reads its output."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work. Told to end by SIGTERM or SIGHUP, it cleans up first, as after Ctrl-C."""
    # Where nobody has set up logs, Python would print warnings of parts and libraries beside the one line
    # with which a command fails.
    logging.getLogger().addHandler(logging.NullHandler())
    gc.set_threshold(*COLLECT_AFTER)
    told: list[int] = []
    try:
        return uvloop.run(_until_told(work, told))
    except (asyncio.CancelledError, KeyboardInterrupt):
        if not told:
            raise
        sys.exit(128 + told[0])


async def _until_told(work: Coroutine[Any, Any, T], told: list[int]) -> T:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    since = 0.0

    def end(number: int, _: object) -> None:
        nonlocal since
        if task and not told:
            since = monotonic()
            told.append(number)
            task.cancel()
            # Only where the loop turns can it clean up by itself; else it says this again, to itself.
            signal.signal(signal.SIGALRM, end)
            signal.setitimer(signal.ITIMER_REAL, _STUCK_AFTER_SECONDS)
            loop.call_soon_threadsafe(signal.setitimer, signal.ITIMER_REAL, 0)
        elif monotonic() - since > _SAID_AGAIN_AFTER_SECONDS:
            raise KeyboardInterrupt

    # Elsewhere, as in tests, signals are none of ours; Python would not let them be.
    is_main = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGTERM, signal.SIGHUP) if is_main else ():
        # Whoever starts it with nohup wants it to outlive the terminal.
        if signal.getsignal(number) == signal.SIG_DFL:
            # Not the loop's own way, which is deaf while a write waits for whoever reads the output.
            signal.signal(number, end)
    return await work

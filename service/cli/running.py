"""Run a command's work until it is done or a signal ends it."""

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
"""Thresholds of Python's garbage collector (gc.set_threshold). By default it scans the state in memory over
and over, blocking everything else; and the objects made here have next to no cycles."""

_REPEATED_AFTER_SECONDS = 1.0
"""A second signal ends the command at once, unless it comes with the first: `timeout` sends one to the
process and one to its group."""

_STUCK_AFTER_SECONDS = 1.5
"""How long a command may take to react to a signal, as when the reader of its output blocks it."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work. On SIGTERM or SIGHUP it cleans up before it ends, as after Ctrl-C."""
    # Without a handler, Python would print warnings of our modules and libraries beside the one line with
    # which a command fails.
    logging.getLogger().addHandler(logging.NullHandler())
    gc.set_threshold(*COLLECT_AFTER)
    signals: list[int] = []
    try:
        return uvloop.run(_until_signaled(work, signals))
    except (asyncio.CancelledError, KeyboardInterrupt):
        if not signals:
            raise
        sys.exit(128 + signals[0])


async def _until_signaled(work: Coroutine[Any, Any, T], signals: list[int]) -> T:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    since = 0.0

    def end(number: int, _: object) -> None:
        nonlocal since
        if task and not signals:
            since = monotonic()
            signals.append(number)
            task.cancel()
            # Cleaning up needs a running loop. If it is blocked, this alarm repeats the signal.
            signal.signal(signal.SIGALRM, end)
            signal.setitimer(signal.ITIMER_REAL, _STUCK_AFTER_SECONDS)
            loop.call_soon_threadsafe(signal.setitimer, signal.ITIMER_REAL, 0)
        elif monotonic() - since > _REPEATED_AFTER_SECONDS:
            raise KeyboardInterrupt

    # In other threads, as in tests, Python allows no signal handlers.
    is_main = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGTERM, signal.SIGHUP) if is_main else ():
        # A command started with nohup is meant to outlive the terminal.
        if signal.getsignal(number) == signal.SIG_DFL:
            # Not loop.add_signal_handler, which does not run while a write to the output blocks.
            signal.signal(number, end)
    return await work

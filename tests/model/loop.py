"""A deterministic event loop that runs only when told to, on a given clock."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

_MAX_CALLBACKS = 100_000


class Loop(asyncio.AbstractEventLoop):
    """The part of an event loop that the model's processes need."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.faults: list[BaseException] = []
        """The exceptions that callbacks raised."""
        self._clock = clock
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []

    def run(self) -> None:
        """Run until no callback is ready and no timer is due.

        Ready callbacks run before due timers, as in a loop that was delayed: an answer that has arrived is
        read before a timer reports a timeout.
        """
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for _ in range(_MAX_CALLBACKS):
                if not self._ready and not self._take_due():
                    return
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(before)
        raise AssertionError("the loop does not become idle")

    def wait_for(self, task: asyncio.Task[Any]) -> Any:
        """Return the result of a task that does not wait for anything external."""
        self.run()
        return task.result()

    def kill(self) -> None:
        """Discard all tasks, callbacks and timers."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    coroutine = task.get_coro()
                    assert coroutine is not None
                    coroutine.close()
        finally:
            asyncio._set_running_loop(before)
        self._ready.clear()
        self._timers.clear()

    def _take_due(self) -> bool:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._ready.append(handle)
        return bool(self._ready)

    # asyncio's interface ----------------------------------------------------------------------------------

    def time(self) -> float:
        """Monotonic seconds."""
        return self._clock()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Schedule a callback."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a callback at a time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a callback after a delay."""
        return self.call_at(self._clock() + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """Create a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        """Create a task of this loop."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks = [other for other in self._tasks if not other.done()]
        self._tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call the function at once, without a thread."""
        del executor
        future = self.create_future()
        future.set_result(func(*args))
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Record what a callback raised. Results that are never retrieved are fine when a process ends."""
        if "never retrieved" not in context["message"]:
            self.faults.append(context.get("exception") or RuntimeError(context["message"]))

    def get_debug(self) -> bool:
        """No."""
        return False

    def is_running(self) -> bool:
        """Whether it is running at the moment."""
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        """No."""
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer is skipped when it is due."""

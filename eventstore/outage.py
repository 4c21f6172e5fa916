"""The log lines of an outage: when it starts, when its reason changes, and when it is over."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

REPEAT_SECONDS = 60.0
"""How long a reason that was logged is not logged again in the same outage."""

STABLE_SECONDS = 1.0
"""How long a connection must last to end an outage. If a disk is full, connecting succeeds, and the next
commit fails."""


class OutageLog:
    """Logs the outages of one task that reconnects by itself, however many attempts that takes.

    Args:
        logger: the logger of the task's module.
        task: what the task is called at the beginning of a line, such as "the listener".
    """

    def __init__(self, logger: logging.Logger, task: str) -> None:
        self._logger = logger
        self._task = task
        self._began: float | None = None
        self._attempts = 0
        self._logged_at: dict[str, float] = {}
        self._end: asyncio.TimerHandle | None = None

    def failed(self, reason: str) -> None:
        """Report that the connection was lost, or that an attempt to connect failed."""
        now = monotonic()
        if self._end:
            self._end.cancel()
            self._end = None
        self._attempts += 1
        if self._began is None:
            self._began = now
            self._logger.warning("%s lost its connection: %s", self._task, reason)
        elif now - self._logged_at.get(reason, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._logger.warning(
                "%s is still not connected after %.1f s (attempt %d): %s",
                self._task,
                now - self._began,
                self._attempts - 1,
                reason,
            )
        else:
            return
        self._logged_at[reason] = now

    def connected(self) -> None:
        """Report that the task is connected. If that lasts, the outage is over."""
        if self._began is not None and self._end is None:
            loop = asyncio.get_running_loop()
            self._end = loop.call_later(STABLE_SECONDS, self._log_end, monotonic() - self._began)

    def _log_end(self, seconds: float) -> None:
        self._logger.info(
            "%s is connected again after %.1f s (attempt %d)", self._task, seconds, self._attempts
        )
        self._began = self._end = None
        self._attempts = 0
        self._logged_at.clear()

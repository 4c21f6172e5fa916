"""Time out waiting callers, and remove from the queue those who have gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.requests import OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.requests import Ticket
    from service.writing.command_queue import CommandQueue

_SWEEP_SECONDS = 0.5
"""How often deadlines are checked. One timer for all tickets costs less than one each; the interval is long
because there can be thousands."""


class Timeouts:
    """Checks the deadlines of waiting tickets, while there are any.

    Args:
        queue: tickets whose commands are not decided yet.
        in_flight: returns the tickets whose commands may be in the log already.
    """

    def __init__(self, queue: CommandQueue, in_flight: Callable[[], Sequence[Ticket]]) -> None:
        self._queue = queue
        self._in_flight = in_flight
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Start checking, unless that is already scheduled."""
        if self._timer is None and self._queue:
            self._schedule()

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        in_flight = self._in_flight()
        for ticket in in_flight:
            if ticket.deadline <= now:
                ticket.fail(OutcomeUnknown())
        for ticket in self._queue:
            if ticket.deadline <= now:
                ticket.fail(Unavailable())
        self._queue.remove_cancelled()
        if in_flight or self._queue:
            self._schedule()

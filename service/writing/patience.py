"""How long callers wait: whoever has waited for too long is told so, and whoever is gone keeps no place."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.requests import OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.requests import Ticket
    from service.writing.waiting import Waiting

_LOOK_SECONDS = 0.5
"""How often all that wait are looked through. One timer for all, as one each would cost more; and seldom,
as there can be thousands."""


class Patience:
    """Looks after those that wait, for as long as anybody does.

    Args:
        waiting: those whose commands are not decided yet.
        under_way: gives those whose commands may be in the log already.
    """

    def __init__(self, waiting: Waiting, under_way: Callable[[], Sequence[Ticket]]) -> None:
        self._waiting = waiting
        self._under_way = under_way
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Begins to look after those that wait, where nobody does."""
        if self._timer is None and self._waiting:
            self._look_later()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        under_way = self._under_way()
        for ticket in under_way:
            if ticket.deadline <= now:
                ticket.fail(OutcomeUnknown())
        for ticket in self._waiting:
            if ticket.deadline <= now:
                ticket.fail(Unavailable())
        self._waiting.let_go()
        if under_way or self._waiting:
            self._look_later()

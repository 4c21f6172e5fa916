"""The queue of commands that wait to be decided."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from service.requests import QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.requests import Ticket

MAX_WAITING_COMMANDS = 10_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Bounds of the queue: beyond either, callers are told to come back later."""

MAX_BATCH_COMMANDS = 1_000
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_BATCH_EVENTS = 5_000
"""Bounds of one batch: it is decided in one go, while others wait, and the database takes only what was
decided within the last second."""


class Waiting:
    """The bounded queue of tickets."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.on_arrival: Callable[[], None] | None = None
        """Told of new tickets, for as long as somebody is there who does not wait for `arrived`."""
        self.bytes = 0
        self._tickets: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def put(self, ticket: Ticket) -> None:
        """Adds a ticket at the end. Nobody is told of it before `tell`.

        Raises:
            QueueFull: a bound is reached.
        """
        if len(self._tickets) >= MAX_WAITING_COMMANDS or self.bytes >= MAX_WAITING_BYTES:
            raise QueueFull
        self._tickets.append(ticket)
        self.bytes += ticket.request.size

    def tell(self) -> None:
        """Tells whoever takes tickets that some have come."""
        self.arrived.set()
        if self.on_arrival:
            self.on_arrival()

    def put_back(self, tickets: Sequence[Ticket]) -> None:
        """Puts a batch that was not carried out back to the front, in its order."""
        self._tickets.extendleft(reversed(tickets))
        self.bytes += sum(ticket.request.size for ticket in tickets)
        self.arrived.set()

    def let_go(self) -> None:
        """Keeps no place for those whose callers have gone, as while the database is away."""
        if any(ticket.outcome.done() for ticket in self._tickets):
            self._tickets = deque(ticket for ticket in self._tickets if not ticket.outcome.done())
            self.bytes = sum(ticket.request.size for ticket in self._tickets)

    def drain(self, most: int = MAX_BATCH_COMMANDS, *, size: int = 0) -> list[Ticket]:
        """Takes the next batch, or more to go beside others; leaves out those whose callers have gone.

        Args:
            most: how many commands to take at most.
            size: of what makes a batch together with these, in bytes.
        """
        batch: list[Ticket] = []
        while self._tickets and len(batch) < most and size < MAX_BATCH_BYTES:
            ticket = self._tickets.popleft()
            self.bytes -= ticket.request.size
            if not ticket.outcome.done():
                batch.append(ticket)
                size += ticket.request.size
        return batch

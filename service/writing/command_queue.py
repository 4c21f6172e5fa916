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
"""Bounds of the queue: beyond either, callers are told to retry later."""

MAX_BATCH_COMMANDS = 1_000
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_BATCH_EVENTS = 5_000
"""Bounds of one batch: everything else waits while it is decided, and the database rejects what was decided
more than a second ago."""


class CommandQueue:
    """The bounded queue of tickets."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.on_arrival: Callable[[], None] | None = None
        """Called on new tickets; set by a consumer that does not wait for `arrived`."""
        self.bytes = 0
        self._tickets: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def put(self, ticket: Ticket) -> None:
        """Add a ticket at the end. Consumers are not woken until `notify` is called.

        Raises:
            QueueFull: a bound is reached.
        """
        if len(self._tickets) >= MAX_WAITING_COMMANDS or self.bytes >= MAX_WAITING_BYTES:
            raise QueueFull
        self._tickets.append(ticket)
        self.bytes += ticket.request.size

    def notify(self) -> None:
        """Wake the consumers: tickets have arrived."""
        self.arrived.set()
        if self.on_arrival:
            self.on_arrival()

    def requeue(self, tickets: Sequence[Ticket]) -> None:
        """Put a batch that was not committed back at the front, in order."""
        self._tickets.extendleft(reversed(tickets))
        self.bytes += sum(ticket.request.size for ticket in tickets)
        self.arrived.set()

    def remove_cancelled(self) -> None:
        """Remove tickets whose callers have gone, as happens while the database is down."""
        if any(ticket.outcome.done() for ticket in self._tickets):
            self._tickets = deque(ticket for ticket in self._tickets if not ticket.outcome.done())
            self.bytes = sum(ticket.request.size for ticket in self._tickets)

    def drain(self, maximum: int = MAX_BATCH_COMMANDS, *, size: int = 0) -> list[Ticket]:
        """Take the next batch, or additions to one; drop tickets whose callers have gone.

        Args:
            maximum: how many commands to take at most.
            size: size in bytes of the batch that these are added to.
        """
        batch: list[Ticket] = []
        while self._tickets and len(batch) < maximum and size < MAX_BATCH_BYTES:
            ticket = self._tickets.popleft()
            self.bytes -= ticket.request.size
            if not ticket.outcome.done():
                batch.append(ticket)
                size += ticket.request.size
        return batch

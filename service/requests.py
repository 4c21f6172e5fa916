"""A command on its way to a decision, and what came of it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from service.callers import Caller
from service.commands import AnyCommand
from service.refusals import Refusal

MAX_WAITING_COMMANDS = 10_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Bounds of the queue: beyond either, callers are told to come back later."""

MAX_BATCH_COMMANDS = 1_000
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_BATCH_EVENTS = 5_000
"""Bounds of one batch: it is decided in one go, while others wait, and the database takes only what was
decided within the last second."""


class NoOutcome(Exception):
    """Nobody can say how a command was decided; the kinds below say why."""


class QueueFull(NoOutcome):
    """Too many commands are waiting to be decided."""


class Stopping(NoOutcome):
    """The service is stopping and takes no more commands."""


class Unavailable(NoOutcome):
    """The database could not be reached in time; the command was not carried out."""


class OutcomeUnknown(NoOutcome):
    """The command was sent to the database, and what came of it could not be found out in time."""


class CommandFailed(NoOutcome):
    """The command could not be decided or stored, by a fault that is not the caller's."""


class Answer(Struct, frozen=True, gc=False):
    """What a caller is answered: an HTTP status and a body."""

    status: int
    body: dict[str, Any]


class Outcome(Struct, frozen=True, gc=False):
    """What came of a command."""

    reply: dict[str, Any]
    position: int | None
    """Of the command's last event, or of the one that made things as they are; None for no trace."""
    refusal: Refusal | None = None
    repeated: Answer | None = None
    """The first answer, where the request's idempotency key was used before."""


class Print(NamedTuple):
    """What an idempotency key is bound to: hashes of the request that it came with."""

    whole: str = ""
    """Of method, path and body; kept, where nothing personal is in it or it can be sealed."""
    bare: str = ""
    """Of what is not personal in them; kept in the open. It is what remains when the rest is erased."""
    also: str = ""
    """Another that may have been kept, by a process with other settings."""


class Request(Struct, frozen=True, gc=False):
    """A command, and who asks for it."""

    command: AnyCommand
    actor: str
    correlation_id: str
    idempotency_key: str | None = None
    fingerprint: str = ""
    """`Print.whole`."""
    answer: Callable[[Outcome], Answer] | None = None
    """Renders the answer that an idempotency key keeps."""
    size: int = 200
    """About how many bytes it holds in memory."""
    bare_fingerprint: str = ""
    """`Print.bare`."""
    other_fingerprint: str = ""
    """`Print.also`."""
    caller: Caller | None = None
    """Whose right to ask is looked at before it is decided; None where the service itself asks."""

    def is_repeat_of(self, kept: str) -> bool:
        """Whether the answer that was kept with this fingerprint is the answer to this request."""
        return kept in (self.fingerprint, self.bare_fingerprint, self.other_fingerprint)


class Ticket(Struct, frozen=True):
    """A request that waits, and the future that its caller waits on."""

    request: Request
    outcome: asyncio.Future[Outcome]
    deadline: float = math.inf
    """When the caller's patience ends, by the event loop's clock."""
    tell: Callable[[AnyCommand, Outcome | Exception], None] | None = None
    """Told what came of it, when the caller is."""

    def resolve(self, outcome: Outcome) -> None:
        """Tells the caller, if it still waits."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)
            if self.tell:
                self.tell(self.request.command, outcome)

    def fail(self, error: Exception) -> None:
        """Tells the caller that there is no outcome, if it still waits."""
        if not self.outcome.done():
            self.outcome.set_exception(error)
            if self.tell:
                self.tell(self.request.command, error)


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

"""A command on its way to a decision, and what came of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import Struct

from service.callers import Caller
from service.commands import AnyCommand
from service.refusals import Refusal


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
    batch_key: str | None = None
    """The idempotency key of the batch that it came in; its own is derived from that."""

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

"""Requests to decide a command, and their outcomes."""

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
    """A command has no known outcome; the subclasses say why."""


class QueueFull(NoOutcome):
    """Too many commands are waiting to be decided."""


class Stopping(NoOutcome):
    """The service is stopping and accepts no more commands."""


class Unavailable(NoOutcome):
    """The database could not be reached in time; the command was not carried out."""


class OutcomeUnknown(NoOutcome):
    """The command was sent to the database, and its outcome could not be determined in time."""


class CommandFailed(NoOutcome):
    """The command could not be decided or stored, because of an internal error."""


class Answer(Struct, frozen=True, gc=False):
    """The answer to a caller: an HTTP status and a body."""

    status: int
    body: dict[str, Any]
    is_replayed: bool = False
    """Whether an earlier request with the same idempotency key got it first."""


class Outcome(Struct, frozen=True, gc=False):
    """The outcome of a command."""

    reply: dict[str, Any]
    position: int | None
    """That of the command's last event, or of the event that led to the current state; else None."""
    refusal: Refusal | None = None
    repeated: Answer | None = None
    """The first answer, if the request's idempotency key was used before."""


class Fingerprints(NamedTuple):
    """The fingerprints that an idempotency key is bound to: hashes of the request that carried it."""

    whole: str = ""
    """Hash of method, path and body; stored if they contain nothing personal, or if it can be sealed."""
    bare: str = ""
    """Hash of the parts that are not personal; stored in plain text. It remains when the rest is erased."""
    also: str = ""
    """Another one that a process with other settings may have stored."""


class Request(Struct, frozen=True, gc=False):
    """A command, and who gives it."""

    command: AnyCommand
    actor: str
    correlation_id: str
    idempotency_key: str | None = None
    fingerprint: str = ""
    """`Fingerprints.whole`."""
    answer: Callable[[Outcome], Answer] | None = None
    """Renders the answer that is stored under the idempotency key."""
    size: int = 200
    """Its approximate size in memory, in bytes."""
    bare_fingerprint: str = ""
    """`Fingerprints.bare`."""
    other_fingerprint: str = ""
    """`Fingerprints.also`."""
    caller: Caller | None = None
    """Whose permission is checked before the decision; None for the service itself."""
    batch_key: str | None = None
    """The idempotency key of the batch that it came in; its own is derived from that."""

    def is_repeat_of(self, kept: str) -> bool:
        """Whether an answer stored with this fingerprint is the answer to this request."""
        return kept in (self.fingerprint, self.bare_fingerprint, self.other_fingerprint)


class Ticket(Struct, frozen=True):
    """A waiting request, and the future that its caller awaits."""

    request: Request
    outcome: asyncio.Future[Outcome]
    deadline: float = math.inf
    """When the request times out, by the event loop's clock."""
    on_resolved: Callable[[AnyCommand, Outcome | Exception], None] | None = None
    """Called with the outcome when the caller gets it."""

    def resolve(self, outcome: Outcome) -> None:
        """Give the caller the outcome, if it still waits."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)
            if self.on_resolved:
                self.on_resolved(self.request.command, outcome)

    def fail(self, error: Exception) -> None:
        """Give the caller an error instead of an outcome, if it still waits."""
        if not self.outcome.done():
            self.outcome.set_exception(error)
            if self.on_resolved:
                self.on_resolved(self.request.command, error)

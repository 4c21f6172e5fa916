"""The events of the log itself."""

from __future__ import annotations

from typing import Any, ClassVar

from eventstore.events.base import Event


class RequestAnswered(Event, frozen=True, kw_only=True):
    """The first response to a request with an idempotency key. Every repeat gets the same response.

    Each command of a batch stores its response under `batch:<index> <key>`; the batch's own key is stored
    with an empty body.
    """

    type: ClassVar[str] = "request_answered"
    key: str
    """The idempotency key."""
    fingerprint: str
    """A hash of the request, by which another request with the same key is recognized."""
    status: int
    """The HTTP status."""
    body: dict[str, Any]
    """The body of the response."""

    @property
    def stream(self) -> str:
        """One stream per key, so that the log itself refuses a second first response."""
        return f"request-{self.key}"


class AppendAbandoned(Event, frozen=True, kw_only=True):
    """A connection broke during a commit, which then turned out not to have happened.

    Appending this moves the head, so if the statement is still in flight, it comes too late.
    """

    type: ClassVar[str] = "append_abandoned"
    first_event_id: str
    """The id of the first event that would have been appended."""
    events: int
    """How many would have been appended."""

    @property
    def stream(self) -> str:
        """One stream per abandoned append, so that no writer needs the version of a shared one."""
        return f"append-{self.first_event_id}"

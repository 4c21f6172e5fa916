"""What the log records about itself."""

from __future__ import annotations

from typing import Any, ClassVar

from eventstore.events.base import Event


class RequestAnswered(Event, frozen=True, kw_only=True):
    """The first answer to a request that bore an idempotency key; it is given again to every repeat.

    Each command of a batch keeps its answer under `batch:<index> <key>`, and the batch's own key is kept
    with an empty body.
    """

    type: ClassVar[str] = "request_answered"
    key: str
    fingerprint: str
    status: int
    body: dict[str, Any]

    @property
    def stream(self) -> str:
        """One stream a key, so that the log itself refuses a second first answer."""
        return f"request-{self.key}"


class AppendAbandoned(Event, frozen=True, kw_only=True):
    """A connection broke during a commit that then proved not to have happened.

    Appending this moves the head, so whatever of that commit may still be on its way comes too late.
    """

    type: ClassVar[str] = "append_abandoned"
    first_event_id: str
    events: int

    @property
    def stream(self) -> str:
        """One stream an abandoned append, so that nobody has to remember the version of a shared one."""
        return f"append-{self.first_event_id}"

"""The events of e-mails."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from eventstore.events.base import Event

EmailStatus = Literal["unread", "classified", "draft_created", "sent", "archived"]


class _EmailEvent(Event, frozen=True, kw_only=True):
    email_id: str
    """The e-mail's id in `email_logs`."""

    @property
    def stream(self) -> str:
        return f"email-{self.email_id}"


class EmailReceived(_EmailEvent, frozen=True, kw_only=True):
    """An e-mail was logged, once per Gmail message id."""

    type: ClassVar[str] = "email_received"
    gmail_message_id: str
    """Its id at Gmail."""
    from_email: str
    """The sender's address."""
    subject: str | None
    """Its subject."""
    category: str
    """What it is about; `unclassified` at first."""
    status: EmailStatus
    """How far the work on it is."""
    handled_by: str | None
    """The agent that handles it."""
    payload: dict[str, Any] | None
    """Anything else that belongs to it, in any shape."""


class EmailUpdated(_EmailEvent, frozen=True, kw_only=True):
    """An e-mail was classified, drafted, sent or handed over. `changed` names the fields that changed."""

    type: ClassVar[str] = "email_updated"
    category: str
    """What it is about."""
    status: EmailStatus
    """How far the work on it is."""
    handled_by: str | None
    """The agent that handles it."""
    payload: dict[str, Any] | None
    """Anything else that belongs to it, in any shape."""
    changed: list[str]
    """The names of the fields that changed."""

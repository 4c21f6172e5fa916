"""The events of e-mails."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from eventstore.events.base import Event

EmailStatus = Literal["unread", "classified", "draft_created", "sent", "archived"]


class _EmailEvent(Event, frozen=True, kw_only=True):
    email_id: str

    @property
    def stream(self) -> str:
        return f"email-{self.email_id}"


class EmailReceived(_EmailEvent, frozen=True, kw_only=True):
    """An e-mail was logged, once per Gmail message id."""

    type: ClassVar[str] = "email_received"
    gmail_message_id: str
    from_email: str
    subject: str | None
    category: str
    status: EmailStatus
    handled_by: str | None
    payload: dict[str, Any] | None


class EmailUpdated(_EmailEvent, frozen=True, kw_only=True):
    """An e-mail was classified, drafted, sent or handed over. `changed` names the fields that changed."""

    type: ClassVar[str] = "email_updated"
    category: str
    status: EmailStatus
    handled_by: str | None
    payload: dict[str, Any] | None
    changed: list[str]

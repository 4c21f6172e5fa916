"""Commands about e-mails."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from eventstore.events import ERASED, EmailStatus
from service.commands.base import UNCONDITIONAL, Command, named_fields
from service.values import ExternalId, Id, JsonObject, Name, Position, ShortText, Text


def _has_address(from_email: str) -> str:
    if from_email == ERASED:
        raise ValueError(f"must not be {ERASED}, which stands for a sender who was forgotten")
    return from_email


class LogEmail(Command):
    """Log a received e-mail, once for each Gmail message id."""

    personal: ClassVar[frozenset[str]] = frozenset({"from_email", "subject", "payload"})

    gmail_message_id: ExternalId
    from_email: Annotated[ShortText, AfterValidator(_has_address)]
    subject: Text | None = None
    category: Name = "unclassified"
    status: EmailStatus = "unread"
    handled_by: Name | None = None
    """The agent that handles it."""
    payload: JsonObject | None = None
    """Anything else that belongs to it, such as its text, in any shape."""


class UpdateEmail(Command):
    """Change the named fields of an e-mail."""

    personal: ClassVar[frozenset[str]] = frozenset({"payload"})

    email_id: Id
    category: Name = ""
    status: EmailStatus = "unread"
    handled_by: Name | None = None
    payload: JsonObject | None = None
    if_position: Position = UNCONDITIONAL
    """The e-mail's `position` as last read. If the e-mail has changed since, the change is refused."""

    @property
    def changes(self) -> dict[str, Any]:
        """The named fields; None clears a field."""
        return named_fields(self, "email_id", "if_position")

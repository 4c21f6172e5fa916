"""What can be asked about e-mails."""

from __future__ import annotations

from typing import Any

from eventstore.events import EmailStatus
from service.commands.base import Command, named_fields
from service.values import ExternalId, Id, JsonObject, Name, ShortText, Text


class LogEmail(Command):
    """Log a received e-mail, once for each Gmail message id."""

    gmail_message_id: ExternalId
    from_email: ShortText
    subject: Text | None = None
    category: Name = "unclassified"
    status: EmailStatus = "unread"
    handled_by: Name | None = None
    payload: JsonObject | None = None


class UpdateEmail(Command):
    """Change what is named of an e-mail."""

    email_id: Id
    category: Name = ""
    status: EmailStatus = "unread"
    handled_by: Name | None = None
    payload: JsonObject | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that were named, None where one is to be cleared."""
        return named_fields(self, "email_id")

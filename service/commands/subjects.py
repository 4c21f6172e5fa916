"""Commands about the subjects of sealed payloads."""

from __future__ import annotations

from pydantic import Field

from service.commands.base import Command
from service.values import ShortText


class ForgetSubject(Command):
    """Make what a sender wrote, or a message, permanently unreadable."""

    subject: ShortText
    """A sender's address, or a message's id."""
    in_plain: int = Field(default=0, ge=0)
    """How many of the sender's e-mails were found in the log in plain text; they stay."""

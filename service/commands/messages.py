"""Commands about messages."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from service.commands.base import Command
from service.values import ExternalId, Id, JsonObject, Name, Text


class SendMessage(Command):
    """Send a message to one agent, or to all."""

    personal: ClassVar[frozenset[str]] = frozenset({"message", "data"})

    from_agent: Name
    to_agent: Name | None = None
    """The recipient; without it, the message goes to all."""
    message: Text = Field(min_length=1)
    task_id: ExternalId | None = None
    """The task that it is about; any id."""
    data: JsonObject | None = None
    """Data for programs, in addition to the text, in any shape."""

    @property
    def acting_agent(self) -> str | None:
        """The sender."""
        return self.from_agent


class AcknowledgeMessage(Command):
    """Remove a message from an agent's inbox."""

    message_id: Id
    agent: Name

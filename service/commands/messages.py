"""What can be asked about messages."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from service.commands.base import Command
from service.values import ExternalId, Id, JsonObject, Name, Text


class SendMessage(Command):
    """Send a message to one agent, or (no `to_agent`) to all."""

    personal: ClassVar[frozenset[str]] = frozenset({"message", "data"})

    from_agent: Name
    to_agent: Name | None = None
    """To whom; without it, to all."""
    message: Text = Field(min_length=1)
    task_id: ExternalId | None = None
    """The task that it is about, by any id."""
    data: JsonObject | None = None
    """What a program may need besides the text, in any shape."""

    @property
    def acting_agent(self) -> str | None:
        """The sender."""
        return self.from_agent


class AcknowledgeMessage(Command):
    """Take a message out of an agent's inbox."""

    message_id: Id
    agent: Name

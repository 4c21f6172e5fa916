"""The events of messages."""

from __future__ import annotations

from typing import Any, ClassVar

from eventstore.events.base import Event


class _MessageEvent(Event, frozen=True, kw_only=True):
    message_id: str
    """The message's id in `squad_messages`."""

    @property
    def stream(self) -> str:
        return f"message-{self.message_id}"


class MessageSent(_MessageEvent, frozen=True, kw_only=True):
    """An agent sent a message to another, or (`to_agent` null) to all."""

    type: ClassVar[str] = "message_sent"
    agent: str
    """The sender."""
    to_agent: str | None
    """The recipient."""
    message: str
    """The text."""
    task_id: str | None
    """The task that it is about, if any."""
    data: dict[str, Any] | None
    """Data for programs, in any shape."""


class MessageAcknowledged(_MessageEvent, frozen=True, kw_only=True):
    """An agent acknowledged a message, which leaves that agent's inbox."""

    type: ClassVar[str] = "message_acknowledged"
    agent: str
    """The agent that acknowledged it."""

"""The events of messages."""

from __future__ import annotations

from typing import Any, ClassVar

from eventstore.events.base import Event


class _MessageEvent(Event, frozen=True, kw_only=True):
    message_id: str

    @property
    def stream(self) -> str:
        return f"message-{self.message_id}"


class MessageSent(_MessageEvent, frozen=True, kw_only=True):
    """An agent sent a message to another, or (`to_agent` None) to all."""

    type: ClassVar[str] = "message_sent"
    agent: str
    to_agent: str | None
    message: str
    task_id: str | None
    data: dict[str, Any] | None


class MessageAcknowledged(_MessageEvent, frozen=True, kw_only=True):
    """An agent acknowledged a message, which leaves that agent's inbox."""

    type: ClassVar[str] = "message_acknowledged"
    agent: str

"""The events of operations, and of conflicts between them."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from eventstore.events.base import Event

OperationOutcome = Literal["succeeded", "failed", "cancelled"]


class _OperationEvent(Event, frozen=True, kw_only=True):
    operation_id: str
    """The operation's id in `operations`."""

    @property
    def stream(self) -> str:
        return f"operation-{self.operation_id}"


class OperationStarted(_OperationEvent, frozen=True, kw_only=True):
    """An agent claimed all of these resources. The event's position is the claim's fencing token."""

    type: ClassVar[str] = "operation_started"
    agent: str
    """The holder."""
    action: str
    """What it is doing, in a word."""
    resources: dict[str, str]
    """What it claimed, by kind."""
    ttl_seconds: float
    """How long the operation lasts without being renewed."""
    blocks_until: datetime
    """Until when the claim blocks others, unless renewed."""
    expires_at: datetime
    """When the operation expires, unless renewed."""


class OperationRenewed(_OperationEvent, frozen=True, kw_only=True):
    """The holder renewed its operation: the conflict window and the time to live start again."""

    type: ClassVar[str] = "operation_renewed"
    agent: str
    """The holder."""
    blocks_until: datetime
    """Until when the claim blocks others, unless renewed again."""
    expires_at: datetime
    """When the operation expires, unless renewed again."""


class OperationFinished(_OperationEvent, frozen=True, kw_only=True):
    """The holder ended its operation and released its claims."""

    type: ClassVar[str] = "operation_finished"
    agent: str
    """The holder."""
    outcome: OperationOutcome
    """How the work ended."""
    tokens_used: int | None
    """The tokens that the holder reported, if any."""


class OperationExpired(_OperationEvent, frozen=True, kw_only=True):
    """An operation was not renewed within its time to live. Its claims are released."""

    type: ClassVar[str] = "operation_expired"
    agent: str
    """The holder."""


class ConflictDetected(_OperationEvent, frozen=True, kw_only=True):
    """A claim was refused because `operation_id` holds one or more of its resources."""

    type: ClassVar[str] = "conflict_detected"
    conflict_id: str
    """The conflict's id in `conflicts`."""
    agent: str
    """The agent that was refused."""
    action: str
    """What it wanted to do, in a word."""
    resources: dict[str, str]
    """What it tried to claim, by kind."""
    contested: dict[str, str]
    """Those of them that were taken."""
    holders: list[str]
    """The agents that hold the operation in the way."""
    holder_action: str
    """What the holders are doing."""

"""The events of operations, and of conflicts between them."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from eventstore.events.base import Event

OperationOutcome = Literal["succeeded", "failed", "cancelled"]


class _OperationEvent(Event, frozen=True, kw_only=True):
    operation_id: str

    @property
    def stream(self) -> str:
        return f"operation-{self.operation_id}"


class OperationStarted(_OperationEvent, frozen=True, kw_only=True):
    """An agent claimed all of these resources. The event's position is the claim's fencing token."""

    type: ClassVar[str] = "operation_started"
    agent: str
    action: str
    resources: dict[str, str]
    ttl_seconds: float
    blocks_until: datetime
    expires_at: datetime


class OperationRenewed(_OperationEvent, frozen=True, kw_only=True):
    """The holder renewed its operation: the conflict window and the time to live start again."""

    type: ClassVar[str] = "operation_renewed"
    agent: str
    blocks_until: datetime
    expires_at: datetime


class OperationFinished(_OperationEvent, frozen=True, kw_only=True):
    """The holder ended its operation and released its claims."""

    type: ClassVar[str] = "operation_finished"
    agent: str
    outcome: OperationOutcome
    tokens_used: int | None


class OperationExpired(_OperationEvent, frozen=True, kw_only=True):
    """An operation was not renewed within its time to live. Its claims are released."""

    type: ClassVar[str] = "operation_expired"
    agent: str


class ConflictDetected(_OperationEvent, frozen=True, kw_only=True):
    """A claim was refused because `operation_id` holds one or more of its resources."""

    type: ClassVar[str] = "conflict_detected"
    conflict_id: str
    agent: str
    action: str
    resources: dict[str, str]
    contested: dict[str, str]
    holders: list[str]
    holder_action: str

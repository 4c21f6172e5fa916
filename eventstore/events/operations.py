"""What happens to operations, and the conflicts between them."""

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
    """An agent claimed every resource it names. The event's position is the claim's fencing token."""

    type: ClassVar[str] = "operation_started"
    agent: str
    action: str
    resources: dict[str, str]
    ttl_seconds: float
    blocks_until: datetime
    expires_at: datetime


class OperationRenewed(_OperationEvent, frozen=True, kw_only=True):
    """The holder is still at it: the conflict window and the time to live start again."""

    type: ClassVar[str] = "operation_renewed"
    agent: str
    blocks_until: datetime
    expires_at: datetime


class OperationFinished(_OperationEvent, frozen=True, kw_only=True):
    """The holder ended its operation and gave its claims back."""

    type: ClassVar[str] = "operation_finished"
    agent: str
    outcome: OperationOutcome
    tokens_used: int | None


class OperationExpired(_OperationEvent, frozen=True, kw_only=True):
    """Nobody renewed the operation in its time to live; its claims are void."""

    type: ClassVar[str] = "operation_expired"
    agent: str


class ConflictDetected(_OperationEvent, frozen=True, kw_only=True):
    """A claim was refused because `operation_id` holds one of its resources."""

    type: ClassVar[str] = "conflict_detected"
    conflict_id: str
    agent: str
    action: str
    resources: dict[str, str]
    contested: dict[str, str]
    holders: list[str]
    holder_action: str

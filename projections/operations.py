"""operations and conflicts: who claims what, and whose claims were refused because of it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from eventstore.events import (
    ConflictDetected,
    OperationExpired,
    OperationFinished,
    OperationOutcome,
    OperationRenewed,
    OperationStarted,
)
from projections.projection import Projection, Row, Table, key_in, require

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View

OperationState = Literal["active", "finished", "expired"]


class OperationRow(Row, frozen=True):
    """A claim on resources: it blocks others until `blocks_until`, and expires at `expires_at`."""

    id: str
    agent: str
    action: str
    resources: dict[str, str]
    state: OperationState
    outcome: OperationOutcome | None
    tokens_used: int | None
    ttl_seconds: float
    started_at: datetime
    renewed_at: datetime
    blocks_until: datetime
    expires_at: datetime
    ended_at: datetime | None
    fencing_token: int
    """The position of the operation's start: a later holder always has a greater token."""
    position: int


class ConflictRow(Row, frozen=True):
    """A refused claim, and the operation that blocked it."""

    id: str
    agent: str
    action: str
    resources: dict[str, str]
    contested: dict[str, str]
    operation_id: str
    operation_agents: list[str]
    operation_action: str
    detected_at: datetime
    position: int


OPERATIONS = Table[str, OperationRow](
    "operations",
    OperationRow,
    key=("id",),
    types=(
        "uuid",
        "text",
        "text",
        "jsonb",
        "text",
        "text",
        "bigint",
        "double precision",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "bigint",
        "bigint",
    ),
    large_columns=("resources",),
)
CONFLICTS = Table[str, ConflictRow](
    "conflicts",
    ConflictRow,
    key=("id",),
    types=("uuid", "text", "text", "jsonb", "jsonb", "uuid", "jsonb", "text", "timestamptz", "bigint"),
)

operations = Projection("operations", (OPERATIONS, CONFLICTS))


_OPERATION_ROW = (key_in(OPERATIONS, "operation_id"),)


@operations.on(OperationStarted, creates=_OPERATION_ROW)
def _started(view: View, event: OperationStarted, recorded: AnyRecorded) -> None:
    row = OperationRow(
        id=event.operation_id,
        agent=event.agent,
        action=event.action,
        resources=event.resources,
        state="active",
        outcome=None,
        tokens_used=None,
        ttl_seconds=event.ttl_seconds,
        started_at=recorded.recorded_at,
        renewed_at=recorded.recorded_at,
        blocks_until=event.blocks_until,
        expires_at=event.expires_at,
        ended_at=None,
        fencing_token=recorded.position,
        position=recorded.position,
    )
    view.rows(OPERATIONS).put(event.operation_id, row)


@operations.on(OperationRenewed, reads=_OPERATION_ROW)
def _renewed(view: View, event: OperationRenewed, recorded: AnyRecorded) -> None:
    row = require(view, OPERATIONS, event.operation_id).replaced(
        renewed_at=recorded.recorded_at,
        blocks_until=event.blocks_until,
        expires_at=event.expires_at,
        position=recorded.position,
    )
    view.rows(OPERATIONS).put(event.operation_id, row)


@operations.on(OperationFinished, reads=_OPERATION_ROW)
def _finished(view: View, event: OperationFinished, recorded: AnyRecorded) -> None:
    row = require(view, OPERATIONS, event.operation_id).replaced(
        state="finished",
        outcome=event.outcome,
        tokens_used=event.tokens_used,
        ended_at=recorded.recorded_at,
        position=recorded.position,
    )
    view.rows(OPERATIONS).put(event.operation_id, row)


@operations.on(OperationExpired, reads=_OPERATION_ROW)
def _expired(view: View, event: OperationExpired, recorded: AnyRecorded) -> None:
    row = require(view, OPERATIONS, event.operation_id).replaced(
        state="expired", ended_at=recorded.recorded_at, position=recorded.position
    )
    view.rows(OPERATIONS).put(event.operation_id, row)


@operations.on(ConflictDetected)
def _conflict_detected(view: View, event: ConflictDetected, recorded: AnyRecorded) -> None:
    row = ConflictRow(
        event.conflict_id,
        event.agent,
        event.action,
        event.resources,
        event.contested,
        event.operation_id,
        event.holders,
        event.holder_action,
        recorded.recorded_at,
        recorded.position,
    )
    view.rows(CONFLICTS).put(event.conflict_id, row)

"""The claim that a run holds on its job's resources: an operation like an agent's own.

It begins with an attempt, is renewed together with the attempt's lease, and ends with the attempt, however
that ends; if the claim is lost, the attempt has failed. So a run holds nothing while it waits for its next
attempt, and each attempt has its own fencing token, greater than those before, by which late actions of an
abandoned process can be recognized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventstore.events import OperationFinished
from projections.agents import ORCHESTRATOR_AGENT
from projections.operations import OPERATIONS
from service.decide import operations

if TYPE_CHECKING:
    from eventstore.events import OperationOutcome
    from eventstore.recorded import NewEvent
    from projections.jobs import JobRow
    from projections.operations import OperationRow
    from projections.runs import RunRow
    from service.decide.builder import DecisionBuilder
    from service.decide.decision import DecisionContext
    from service.decide.operations import Conflict


def find_conflict(builder: DecisionBuilder, job: JobRow) -> Conflict | None:
    """Return the claim that conflicts with the job's resources, if any."""
    if not job.resources:
        return None
    return operations.find_conflict(builder.state, job.resources, builder.at.now)


def conflict_event(job: JobRow, conflict: Conflict, at: DecisionContext) -> NewEvent:
    """Return the event of a conflicting claim that stopped the job."""
    return operations.conflict_event(conflict, _holder(job), job.name, job.resources or {}, at)


def record_refusal(builder: DecisionBuilder, job: JobRow, refused: NewEvent) -> int:
    """Record that the job was refused its claim or its tokens. Return the position of that event."""
    agent = _holder(job)
    if agent == ORCHESTRATOR_AGENT:
        builder.ensure_active(agent)
    return builder.append(refused)


def begin(builder: DecisionBuilder, job: JobRow, caused_by: int) -> str | None:
    """Claim the job's resources, which must be free; return the operation's id."""
    if not job.resources:
        return None
    agent = _holder(job)
    builder.ensure_active(agent, "run_started")
    started = operations.start_event(builder.state, agent, job.name, job.resources, builder.at)
    builder.add(started, caused_by)
    return started.operation_id


class LostClaim(NamedTuple):
    """Why a run lost its claim, and the position of the event that says so, if there is one."""

    reason: str
    caused_by: int | None


def renew(builder: DecisionBuilder, row: RunRow) -> LostClaim | None:
    """Renew the claim; return why that is not possible, if it was lost."""
    if row.operation_id is None:
        return None
    now, operation = builder.at.now, _claim_of(builder, row)
    if operation is None or operation.expires_at <= now:
        return LostClaim("its claim has ended", None)
    conflict = operations.find_conflict(builder.state, operation.resources, now, renewing=operation)
    if conflict is None:
        builder.add(operations.renewal_event(builder.state, operation, now), operation.position)
        return None
    detected = operations.conflict_event(
        conflict, operation.agent, operation.action, operation.resources, builder.at
    )
    return LostClaim(f"conflict: {operations.conflict_sentence(conflict)}", builder.append(detected))


def release(builder: DecisionBuilder, row: RunRow, outcome: OperationOutcome, caused_by: int) -> None:
    """End the claim, if the run still holds it."""
    operation = _claim_of(builder, row)
    if operation is None:
        return
    finished = OperationFinished(
        operation_id=operation.id, agent=operation.agent, outcome=outcome, tokens_used=None
    )
    builder.add(finished, caused_by)


def _claim_of(builder: DecisionBuilder, row: RunRow) -> OperationRow | None:
    operation = builder.state.rows(OPERATIONS).get(row.operation_id) if row.operation_id else None
    return operation if operation and operation.state == "active" else None


def _holder(job: JobRow) -> str:
    return job.agent or ORCHESTRATOR_AGENT

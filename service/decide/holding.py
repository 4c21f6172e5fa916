"""The claim that a run holds on its job's resources: an operation like an agent's own.

It begins with an attempt, is renewed together with the attempt's lease, and ends with the attempt, however
that ends; where it is lost, the attempt has failed. So a run holds nothing while it waits for its next
attempt, and each attempt has a fencing token of its own, greater than those before: what a process still
does that was given up on can be told by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventstore.events import OperationFinished
from projections.agents import ORCHESTRATOR_AGENT
from projections.operations import OPERATIONS
from service.decide import operations

if TYPE_CHECKING:
    from eventstore.events import OperationOutcome
    from projections.jobs import JobRow
    from projections.operations import OperationRow
    from projections.runs import RunRow
    from service.decide.operations import Conflict
    from service.decide.unfolding import Unfolding


def in_the_way(told: Unfolding, job: JobRow) -> Conflict | None:
    """Who else is at one of the job's resources; whom this decision makes let go is not."""
    if not job.resources:
        return None
    return operations.find_conflict(told.state, job.resources, told.at.now, ended=told.let_go)


def turn_away(told: Unfolding, job: JobRow, conflict: Conflict) -> int:
    """Records that the job wanted what somebody else is at. Gives the position of that."""
    agent = _holder(job)
    if agent == ORCHESTRATOR_AGENT:
        told.arrive(agent)
    told.events.append(operations.detection_of(conflict, agent, job.name, job.resources or {}, told.at))
    return told.position


def begin(told: Unfolding, job: JobRow, caused_by: int) -> str | None:
    """Claims the job's resources, which nobody else may be at; gives the operation's id."""
    if not job.resources:
        return None
    agent = _holder(job)
    told.arrive(agent, "run_started")
    started = operations.start_of(told.state, agent, job.name, job.resources, told.at)
    told.add(started, caused_by)
    told.work[agent] += 1
    return started.operation_id


class Lost(NamedTuple):
    """Why a run has no claim any more, and the event that tells of it, where one does."""

    reason: str
    caused_by: int | None


def renew(told: Unfolding, row: RunRow) -> Lost | None:
    """Goes on holding the claim; says why not, where that is too late."""
    if row.operation_id is None:
        return None
    now, operation = told.at.now, _claim_of(told, row)
    if operation is None or operation.expires_at <= now:
        return Lost("its claim is over", None)
    conflict = operations.find_conflict(told.state, operation.resources, now, renewing=operation)
    if conflict is None:
        told.add(operations.renewal_of(told.state, operation, now), operation.position)
        return None
    told.events.append(
        operations.detection_of(conflict, operation.agent, operation.action, operation.resources, told.at)
    )
    return Lost(f"conflict: {operations.in_a_sentence(conflict)}", told.position)


def let_go(told: Unfolding, row: RunRow, outcome: OperationOutcome, caused_by: int) -> None:
    """Ends the claim, if the run still holds it."""
    operation = _claim_of(told, row)
    if operation is None:
        return
    finished = OperationFinished(
        operation_id=operation.id, agent=operation.agent, outcome=outcome, tokens_used=None
    )
    told.add(finished, caused_by)
    told.let_go.add(operation.id)
    told.work[operation.agent] -= 1


def _claim_of(told: Unfolding, row: RunRow) -> OperationRow | None:
    operation = told.state.rows(OPERATIONS).get(row.operation_id) if row.operation_id else None
    if operation is None or operation.state != "active" or operation.id in told.let_go:
        return None
    return operation


def _holder(job: JobRow) -> str:
    return job.agent or ORCHESTRATOR_AGENT

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
    from projections.jobs import JobRow
    from projections.operations import OperationRow
    from projections.runs import RunRow
    from service.decide.operations import Conflict
    from service.decide.unfolding import Unfolding


def in_the_way(unfolding: Unfolding, job: JobRow) -> Conflict | None:
    """Return the claim that conflicts with the job's resources, ignoring those that this decision ends."""
    if not job.resources:
        return None
    return operations.find_conflict(
        unfolding.state, job.resources, unfolding.at.now, ended=unfolding.let_go
    )


def turn_away(unfolding: Unfolding, job: JobRow, conflict: Conflict) -> int:
    """Record that a conflicting claim stopped the job. Return the position of that event."""
    agent = _holder(job)
    if agent == ORCHESTRATOR_AGENT:
        unfolding.arrive(agent)
    unfolding.events.append(
        operations.detection_of(conflict, agent, job.name, job.resources or {}, unfolding.at)
    )
    return unfolding.position


def begin(unfolding: Unfolding, job: JobRow, caused_by: int) -> str | None:
    """Claim the job's resources, which must be free; return the operation's id."""
    if not job.resources:
        return None
    agent = _holder(job)
    unfolding.arrive(agent, "run_started")
    started = operations.start_of(unfolding.state, agent, job.name, job.resources, unfolding.at)
    unfolding.add(started, caused_by)
    unfolding.work[agent] += 1
    return started.operation_id


class Lost(NamedTuple):
    """Why a run lost its claim, and the position of the event that says so, if there is one."""

    reason: str
    caused_by: int | None


def renew(unfolding: Unfolding, row: RunRow) -> Lost | None:
    """Renew the claim; return why that is not possible, if it was lost."""
    if row.operation_id is None:
        return None
    now, operation = unfolding.at.now, _claim_of(unfolding, row)
    if operation is None or operation.expires_at <= now:
        return Lost("its claim has ended", None)
    conflict = operations.find_conflict(unfolding.state, operation.resources, now, renewing=operation)
    if conflict is None:
        unfolding.add(operations.renewal_of(unfolding.state, operation, now), operation.position)
        return None
    unfolding.events.append(
        operations.detection_of(
            conflict, operation.agent, operation.action, operation.resources, unfolding.at
        )
    )
    return Lost(f"conflict: {operations.in_a_sentence(conflict)}", unfolding.position)


def let_go(unfolding: Unfolding, row: RunRow, outcome: OperationOutcome, caused_by: int) -> None:
    """End the claim, if the run still holds it."""
    operation = _claim_of(unfolding, row)
    if operation is None:
        return
    finished = OperationFinished(
        operation_id=operation.id, agent=operation.agent, outcome=outcome, tokens_used=None
    )
    unfolding.add(finished, caused_by)
    unfolding.let_go.add(operation.id)
    unfolding.work[operation.agent] -= 1


def _claim_of(unfolding: Unfolding, row: RunRow) -> OperationRow | None:
    operation = unfolding.state.rows(OPERATIONS).get(row.operation_id) if row.operation_id else None
    if operation is None or operation.state != "active" or operation.id in unfolding.let_go:
        return None
    return operation


def _holder(job: JobRow) -> str:
    return job.agent or ORCHESTRATOR_AGENT

"""How a run ends: settle its tokens, release its claim, report to the squad, let its agent go idle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore.events import (
    AgentStatusChanged,
    JobPaused,
    MessageSent,
    RunFinished,
    RunOutcome,
)
from projections.agents import AGENTS, ORCHESTRATOR_AGENT
from projections.budgets import RESERVATIONS
from projections.jobs import JOBS
from service.commands import Usage
from service.decide import run_claims
from service.decide.agents import status_without_work
from service.decide.allowance import crossings
from service.decide.budget import record_use, released, settled

if TYPE_CHECKING:
    from eventstore.events import OperationOutcome
    from projections.runs import RunRow
    from service.decide.builder import DecisionBuilder


class Ending(NamedTuple):
    """How a run ends."""

    outcome: RunOutcome
    report: str
    """The text of the message to the squad."""
    reason: str | None = None
    """Why it did not succeed."""
    used: Usage | None = None
    """By the last attempt; None releases the reservation."""
    data: dict[str, Any] | None = None
    """Sent with the report."""
    answered: bool = False
    """Whether the agent answered successfully."""
    caused_by: int | None = None
    """The event that led to it, if not the run itself."""


def end(builder: DecisionBuilder, row: RunRow, ending: Ending) -> None:
    """End a run that the job itself made succeed or fail, with all consequences."""
    ended = _finish(builder, row, ending)
    job = builder.state.rows(JOBS).get(row.job)
    may_pause = job and job.pause_on_failure and not (job.paused or job.removed)
    if ending.outcome == "failed" and may_pause:
        builder.add(JobPaused(job=row.job, reason="failure", note=ending.reason), ended)
    set_idle(builder, row.agent, ended)


def give_up(builder: DecisionBuilder, row: RunRow, ending: Ending) -> None:
    """End a run that was lost or aborted, may not go on or never began. That does not pause the job."""
    set_idle(builder, row.agent, _finish(builder, row, ending))


def cancel(builder: DecisionBuilder, row: RunRow, reason: str) -> None:
    """End a run from outside. That is not the job's failure either; the caller sets the agent's status."""
    _finish(builder, row, Ending("failed", f"{row.job} was {reason}", reason), claim="cancelled")


def set_idle(builder: DecisionBuilder, agent: str | None, caused_by: int) -> None:
    """Set an agent without other work to idle, or to offline if it was silent for long enough."""
    row = builder.state.rows(AGENTS).get(agent) if agent else None
    if row and row.status == "active" and row.operations <= 0:
        status = status_without_work(builder.before.policy, row, builder.at.now)
        rests = AgentStatusChanged(agent=row.name, previous="active", status=status, reason="run_ended")
        builder.add(rests, caused_by)


def spend(builder: DecisionBuilder, row: RunRow, used: Usage) -> None:
    """Record tokens without a reservation, or after it has ended."""
    if day := builder.state.day:
        record_use(builder, day, worker_of(row), used, caused_by=row.position)


def worker_of(row: RunRow) -> str:
    """Return the agent whose work a run is."""
    return row.agent or ORCHESTRATOR_AGENT


def _finish(
    builder: DecisionBuilder, row: RunRow, ending: Ending, *, claim: OperationOutcome | None = None
) -> int:
    """Settle a run's tokens, finish it, and report to the squad. Return the position of the finish."""
    succeeded = ending.outcome == "succeeded"
    # The agent reports only what it succeeded in.
    reporter = worker_of(row) if succeeded else ORCHESTRATOR_AGENT
    builder.ensure_active(reporter)
    _settle(builder, row, ending.used)
    last = ending.used.tokens_used if ending.used else None
    known = [tokens for tokens in (row.tokens_used, last) if tokens is not None]
    finished = RunFinished(
        run_id=row.id,
        job=row.job,
        agent=row.agent,
        outcome=ending.outcome,
        attempts=row.attempts,
        reason=ending.reason,
        tokens_used=sum(known) if known else None,
        answered=ending.answered and row.agent is not None,
    )
    ended = builder.add(finished, ending.caused_by or row.position)
    run_claims.release(builder, row, claim or ("succeeded" if succeeded else "failed"), ended)
    message = MessageSent(
        message_id=builder.at.new_id(),
        agent=reporter,
        to_agent=ORCHESTRATOR_AGENT,
        message=ending.report,
        task_id=None,
        data={**(ending.data or {}), "job": row.job, "run_id": row.id, "status": ending.outcome},
    )
    builder.add(message, ended)
    return ended


def _settle(builder: DecisionBuilder, row: RunRow, used: Usage | None) -> None:
    held = builder.state.rows(RESERVATIONS).get(row.reservation_id) if row.reservation_id else None
    if held is None or held.state != "active":
        if used and used.tokens_used:
            spend(builder, row, used)
    elif used is None:
        builder.add(released(held, "released"), held.position)
    else:
        day = builder.state.day
        position = builder.add(settled(held, used), held.position)
        if day and day.day == held.day:
            total = day.used + used.tokens_used
            builder.events += crossings(builder.before, day, total, caused_by=position)

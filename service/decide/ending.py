"""How a run ends: settle its tokens, release its claim, report to the squad, let its agent go idle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore.events import (
    AgentStatusChanged,
    JobPaused,
    MessageSent,
    RunFinished,
    RunOutcome,
    TokensUsed,
)
from projections.agents import AGENTS, ORCHESTRATOR_AGENT
from projections.budgets import RESERVATIONS
from projections.jobs import JOBS
from service.decide import holding
from service.decide.agents import status_at_rest
from service.decide.budget import crossings, released, settled, use

if TYPE_CHECKING:
    from eventstore.events import OperationOutcome
    from projections.runs import RunRow
    from service.decide.unfolding import Unfolding


class Ending(NamedTuple):
    """How a run ends."""

    outcome: RunOutcome
    report: str
    """The text of the message to the squad."""
    reason: str | None = None
    """Why it did not succeed."""
    tokens_used: int | None = None
    """By the last attempt; None releases the reservation."""
    data: dict[str, Any] | None = None
    """Sent with the report."""
    answered: bool = False
    """Whether the agent answered successfully."""
    caused_by: int | None = None
    """The event that led to it, if not the run itself."""


def end(unfolding: Unfolding, row: RunRow, ending: Ending) -> None:
    """End a run that the job itself made succeed or fail, with all consequences."""
    ended = _finish(unfolding, row, ending)
    job = unfolding.state.rows(JOBS).get(row.job)
    may_pause = job and job.pause_on_failure and not (job.paused or job.removed)
    if ending.outcome == "failed" and may_pause:
        unfolding.add(JobPaused(job=row.job, reason="failure", note=ending.reason), ended)
    _rest_after(unfolding, row, ending, ended)


def give_up(unfolding: Unfolding, row: RunRow, ending: Ending) -> None:
    """End a run that was lost or aborted, may not go on or never began. That does not pause the job."""
    _rest_after(unfolding, row, ending, _finish(unfolding, row, ending))


def cancel(unfolding: Unfolding, row: RunRow, reason: str) -> None:
    """End a run from outside. That is not the job's failure either; the caller sets the agent's status."""
    _finish(unfolding, row, Ending("failed", f"{row.job} was {reason}", reason), claim="cancelled")


def rest(unfolding: Unfolding, agent: str, caused_by: int, *, answered: bool = False) -> None:
    """Set an agent without other work to idle, or to offline if it was silent for long enough."""
    row = unfolding.state.rows(AGENTS).get(agent)
    if row is None or row.operations + unfolding.work[agent] > 0:
        return
    if row.status == "active" or unfolding.has_arrived(agent):
        status = "idle" if answered else status_at_rest(unfolding.state.policy, row, unfolding.at.now)
        rests = AgentStatusChanged(agent=agent, previous="active", status=status, reason="run_ended")
        unfolding.add(rests, caused_by)


def spend(unfolding: Unfolding, row: RunRow, tokens: int) -> None:
    """Record tokens without a reservation, or after it has ended."""
    if day := unfolding.state.day:
        used = TokensUsed(day=day.day, agent=worker_of(row), tokens=tokens)
        unfolding.events += use(
            unfolding.state, day, used, after=len(unfolding.events), caused_by=row.position
        )


def worker_of(row: RunRow) -> str:
    """Return the agent whose work a run is."""
    return row.agent or ORCHESTRATOR_AGENT


def _finish(
    unfolding: Unfolding, row: RunRow, ending: Ending, *, claim: OperationOutcome | None = None
) -> int:
    """Settle a run's tokens, finish it, and report to the squad. Return the position of the finish."""
    succeeded = ending.outcome == "succeeded"
    # The agent reports only what it succeeded in.
    reporter = worker_of(row) if succeeded else ORCHESTRATOR_AGENT
    unfolding.arrive(reporter)
    _settle(unfolding, row, ending.tokens_used)
    known = [tokens for tokens in (row.tokens_used, ending.tokens_used) if tokens is not None]
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
    ended = unfolding.add(finished, ending.caused_by or row.position)
    if row.agent:
        unfolding.work[row.agent] -= 1
    holding.let_go(unfolding, row, claim or ("succeeded" if succeeded else "failed"), ended)
    message = MessageSent(
        message_id=unfolding.at.new_id(),
        agent=reporter,
        to_agent=ORCHESTRATOR_AGENT,
        message=ending.report,
        task_id=None,
        data={**(ending.data or {}), "job": row.job, "run_id": row.id, "status": ending.outcome},
    )
    unfolding.add(message, ended)
    return ended


def _rest_after(unfolding: Unfolding, row: RunRow, ending: Ending, ended: int) -> None:
    if row.agent:
        rest(unfolding, row.agent, ended, answered=ending.answered)


def _settle(unfolding: Unfolding, row: RunRow, tokens: int | None) -> None:
    held = unfolding.state.rows(RESERVATIONS).get(row.reservation_id) if row.reservation_id else None
    if held is None or held.state != "active":
        if tokens:
            spend(unfolding, row, tokens)
    elif tokens is None:
        unfolding.add(released(held, "released"), held.position)
        unfolding.given_back[held.day, held.agent] += held.tokens
    else:
        position = unfolding.add(settled(held, tokens), held.position)
        day = unfolding.state.day
        if day and day.day == held.day:
            unfolding.events += crossings(unfolding.state, day, day.used + tokens, caused_by=position)

"""How a run starts: its claim and its tokens are acquired together with it, or it does not start.

A tick starts a run in the process that claims it. A run can also be requested at any time, in a named
process or in the first that takes it up.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from eventstore.events import RunStarted, TokensDenied, TokensReserved
from eventstore.recorded import NewEvent
from projections.agents import ORCHESTRATOR_AGENT
from projections.jobs import JOBS, JobRow
from service.decide import run_claims
from service.decide.allowance import allowance, retry_after_seconds
from service.decide.builder import DecisionBuilder
from service.decide.decision import Decision, DecisionContext, Refused
from service.decide.ending import cancel
from service.decide.operations import refusal_for
from service.decide.runs import LEASE_SECONDS, MAX_BACKOFF_SECONDS, lease_until
from service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from projections.runs import RunRow
    from service.commands import RunJob
    from service.memory.draft import Draft
    from service.memory.state import State


class Obstacle(NamedTuple):
    """Why a run cannot start."""

    reason: Literal["budget", "conflict"]
    refusal: Refusal
    event: NewEvent
    """Records the refusal."""


def run_now(draft: Draft, command: RunJob, at: DecisionContext) -> Decision:
    """Run a job now, even if it is paused; not beside another run, nor while the orchestrator is down."""
    job = scheduled_job(draft, command.name)
    if job is None:
        return job_not_found(command.name)
    if draft.orchestrator is None or not draft.orchestrator.running:
        return Refused(Refusal("orchestrator_stopped", "start the orchestrator to run jobs"))
    active = active_runs(draft, job)
    if active and job.overlap != "allow_all":
        held = {"run_id": active[0].id}
        return Refused(Refusal("job_running", f"{job.name} is already running", held))
    builder = DecisionBuilder(draft, at)
    if obstacle := find_obstacle(draft, job, at):
        run_claims.record_refusal(builder, job, obstacle.event)
        return builder.refuse(obstacle.refusal)
    id_ = at.new_id()
    start(builder, job, id_, at.now, command.runner, manual=True)
    reply = {
        "id": id_,
        "job": job.name,
        "tick": at.now,
        "status": "running",
        "attempts": 1 if command.runner else 0,
        "started_at": at.now if command.runner else None,
    }
    return builder.accept(reply)


def find_obstacle(
    draft: Draft, job: JobRow, at: DecisionContext, replaced: Iterable[RunRow] = ()
) -> Obstacle | None:
    """Return why a run of the job cannot start now, if so.

    Args:
        draft: the squad.
        job: the job.
        at: the context of the decision.
        replaced: runs that are cancelled if it starts; what they hold counts as free.
    """
    # A trial: none of its events is recorded.
    trial = DecisionBuilder(draft, at)
    for run in replaced:
        cancel(trial, run, "replaced")
    if conflict := run_claims.find_conflict(trial, job):
        event = run_claims.conflict_event(job, conflict, at)
        return Obstacle("conflict", refusal_for(conflict, at.now), event)
    return _find_shortage(trial, job)


def start(
    builder: DecisionBuilder,
    job: JobRow,
    id_: str,
    tick: datetime,
    runner: str | None,
    *,
    manual: bool = False,
) -> None:
    """Start a run, with the claim and the tokens that it needs, to which there must be no obstacle."""
    reserved = _reservation(builder, job, waits=runner is None)
    if job.agent or reserved:
        builder.ensure_active(job.agent or ORCHESTRATOR_AGENT, "run_started")
    if reserved:
        builder.add(reserved, job.position)
    # No process would renew the claim of a waiting run, so the claim begins with the first attempt.
    operation_id = run_claims.begin(builder, job, job.position) if runner else None
    started = RunStarted(
        run_id=id_,
        job=job.name,
        agent=job.agent,
        tick=tick,
        manual=manual,
        runner=runner,
        attempts_allowed=job.retries + 1,
        lease_expires_at=lease_until(builder.at.now) if runner else None,
        reservation_id=reserved.reservation_id if reserved else None,
        operation_id=operation_id,
    )
    builder.add(started, job.position)


def active_runs(state: State, job: JobRow) -> list[RunRow]:
    """Return the job's active runs, oldest first."""
    return sorted(state.runs_of(job.name), key=lambda run: run.fencing_token)


def scheduled_job(state: State, name: str) -> JobRow | None:
    """Return a job unless it was removed: its row remains until the end of the batch that removed it."""
    row = state.rows(JOBS).get(name)
    return None if row is None or row.removed else row


def job_not_found(name: str) -> Refused:
    """Return the refusal for a job that is not on the schedule."""
    return Refused(Refusal("job_not_found", f"no job is called {name!r}"))


def _find_shortage(trial: DecisionBuilder, job: JobRow) -> Obstacle | None:
    """Return the refusal of the tokens that a run needs, if there are not enough even after the trial."""
    state, agent = trial.before, job.agent or ORCHESTRATOR_AGENT
    day, freed_day = state.day, trial.state.day
    if not job.tokens or day is None or freed_day is None:
        return None
    judged = allowance(trial.state, freed_day, agent, job.tokens)
    if judged.denied is None:
        return None
    denied = TokensDenied(
        day=day.day,
        agent=agent,
        tokens=job.tokens,
        reason=judged.denied,
        # As it stays, since nothing is released after all.
        remaining=allowance(state, day, agent, job.tokens).remaining,
    )
    part = state.agent_budget(day, agent)
    of_squad = judged.denied == "budget_exhausted"
    event = NewEvent(denied, day.position if of_squad else part.position or state.policy.position)
    # If the agent has a limit, the squad may have more left than the agent.
    to_whom = f" for {agent!r}" if agent in state.policy.agent_limits else ""
    with_what = ", including what a cancellation would release" if freed_day.reserved < day.reserved else ""
    left = max(judged.remaining, 0)
    detail = f"{job.tokens} tokens are needed, {left} remain{to_whom}{with_what}"
    extra: dict[str, Any] = {"remaining": denied.remaining, "resets_at": day.ends_at}
    retry_after = retry_after_seconds(state, day, agent, job.tokens, trial.at.now)
    return Obstacle("budget", Refusal(denied.reason, detail, extra, retry_after), event)


def _reservation(builder: DecisionBuilder, job: JobRow, *, waits: bool) -> TokensReserved | None:
    """Return the reservation of the tokens that a run needs, if it needs any."""
    day, at = builder.state.day, builder.at
    if not job.tokens or day is None:
        return None
    wait = timedelta(seconds=job.catch_up_seconds if waits else 0)
    return TokensReserved(
        day=day.day,
        reservation_id=at.new_id(),
        agent=job.agent or ORCHESTRATOR_AGENT,
        tokens=job.tokens,
        expires_at=at.now + wait + _max_run_duration(job),
    )


def _max_run_duration(job: JobRow) -> timedelta:
    """Return how long a run may take with all its attempts, plus a margin for waiting for a slot."""
    one_attempt = job.timeout_seconds + LEASE_SECONDS + 2 * MAX_BACKOFF_SECONDS
    return timedelta(seconds=(job.retries + 1) * one_attempt)

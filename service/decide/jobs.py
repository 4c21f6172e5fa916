"""Decisions about jobs: what is on the schedule, and what is due to be claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from eventstore.events import JobDefined, JobPaused, JobRemoved, JobResumed
from eventstore.recorded import NewEvent
from projections.agents import AGENTS
from projections.jobs import JOBS, JobRow
from service.commands import RemoveJob
from service.decide.builder import DecisionBuilder
from service.decide.decision import Accepted, Decision, DecisionContext, Refused
from service.decide.starting import job_not_found, scheduled_job
from service.decide.ticks import close_schedule
from service.memory.deadlines import NEVER
from service.refusals import Refusal
from service.schedule import schedule_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from eventstore.events import RemovalSource
    from service.commands import DefineJob, PauseJob, ResumeJob, WithdrawJob
    from service.memory.draft import Draft
    from service.memory.squad import Squad
    from service.memory.state import State


def define(draft: Draft, command: DefineJob, at: DecisionContext) -> Decision:
    """Add a job to the schedule, or change it; repeating the same definition changes nothing."""
    definition = command.definition
    if definition.agent is not None and draft.rows(AGENTS).get(definition.agent) is None:
        return Refused(Refusal("agent_not_found", f"no agent is called {definition.agent!r}"))
    row = scheduled_job(draft, command.name)
    if row and all(getattr(row, name) == value for name, value in structs.asdict(definition).items()):
        return Accepted([], {"name": row.name, "position": row.position})
    # An explicit definition or removal takes precedence over a default, even one from before this start.
    if command.source == "default" and (explicit := _set_explicitly(draft, command.name)):
        return Accepted([], {"name": explicit.name, "position": explicit.position})
    builder = DecisionBuilder(draft, at)
    closed = True
    if row and not definition.enabled:
        closed = close_schedule(builder, row, "disabled")
    elif row and schedule_of(definition) != schedule_of(row):
        closed = close_schedule(builder, row, "rescheduled")
    if not closed:
        return _refuse_overdue(builder, command.name)
    defined = JobDefined(job=command.name, source=command.source, definition=definition)
    builder.add(defined, caused_by=row.position if row else None)
    return builder.accept({"name": command.name})


def _set_explicitly(state: State, name: str) -> JobRow | None:
    """Return the job if it was defined, or removed, explicitly rather than by default."""
    row = state.rows(JOBS).get(name)
    if row is None:
        return None
    is_explicit = row.removed_by == "api" if row.removed else row.source != "default"
    return row if is_explicit else None


def remove(draft: Draft, command: RemoveJob | WithdrawJob, at: DecisionContext) -> Decision:
    """Remove a job from the schedule; attempts in progress are left to end by themselves.

    A job that the settings withdraw can be brought back by them, even if it was removed by hand before.
    """
    row = draft.rows(JOBS).get(command.name)
    source: RemovalSource = "api" if isinstance(command, RemoveJob) else "settings"
    taken_over = source == "settings" and row is not None and row.removed_by == "api"
    if row is None or (row.removed and not taken_over):
        return job_not_found(command.name)
    if source == "settings" and row.source == "api" and not row.removed:
        return Accepted([], {"name": row.name, "position": row.position})
    builder = DecisionBuilder(draft, at)
    if not row.removed and not close_schedule(builder, row, "removed"):
        return _refuse_overdue(builder, row.name)
    builder.add(JobRemoved(job=row.name, source=source), caused_by=row.position)
    return builder.accept({"name": row.name})


def _refuse_overdue(builder: DecisionBuilder, name: str) -> Refused:
    """Refuse to end a schedule while some of its ticks have no outcome yet."""
    detail = f"{name} is behind: {len(builder.events)} past ticks were recorded, and there are more"
    return builder.refuse(Refusal("job_behind", detail, retry_after_seconds=1))


def pause(state: State, command: PauseJob, at: DecisionContext) -> Decision:
    """Skip the job's ticks from now on."""
    del at
    row = scheduled_job(state, command.name)
    if row is None:
        return job_not_found(command.name)
    reply = {"name": row.name, "paused": True, "note": command.note}
    if row.paused and row.pause_note == command.note:
        return Accepted([], {**reply, "position": row.position})
    paused = JobPaused(job=row.name, reason="manual", note=command.note)
    return Accepted([NewEvent(paused, caused_by=row.position)], reply)


def resume(state: State, command: ResumeJob, at: DecisionContext) -> Decision:
    """Run the job's ticks again."""
    del at
    row = scheduled_job(state, command.name)
    if row is None:
        return job_not_found(command.name)
    reply = {"name": row.name, "paused": False, "note": command.note}
    if not row.paused:
        return Accepted([], {**reply, "position": row.position})
    resumed = JobResumed(job=row.name, note=command.note)
    return Accepted([NewEvent(resumed, caused_by=row.position)], reply)


def due_jobs(
    squad: Squad, now: datetime, report: Callable[[JobRow, str], None] | None = None
) -> tuple[list[str], list[str], datetime | None]:
    """Return what to claim now, jobs with due ticks and free runs, and when something will be due next.

    If very many jobs have changed, it takes several calls to find out which are due; no job is claimed
    before that, as another may have to go first.

    Args:
        squad: the squad.
        now: the time.
        report: called with each job whose ticks this process cannot compute, and the reason.
    """
    runs, later = (
        [run.id for run in squad.runs_in_progress.free(now)],
        squad.runs_in_progress.next_free(now),
    )
    agenda = squad.due_jobs
    if not agenda.catch_up(now, report):
        return [], runs, now
    due = {job.name: (-_priority(squad, job), since, job.position) for since, job in agenda.due(now)}
    for job in agenda.buffered():
        if job.buffered_tick and not any(squad.runs_of(job.name)):
            due[job.name] = (-_priority(squad, job), job.buffered_tick, job.position)
    if coming := agenda.next(now):
        later = min(later, coming)
    return sorted(due, key=due.__getitem__), runs, later if later < NEVER else None


def _priority(state: State, job: JobRow) -> int:
    agent = state.rows(AGENTS).get(job.agent) if job.agent else None
    return agent.priority if agent else 0

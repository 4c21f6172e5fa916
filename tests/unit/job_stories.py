"""Building blocks for tests of jobs: definitions, rows, commands, and squads with a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import structs

from eventstore.events import JobDefinition
from projections.jobs import JobRow
from service.commands import (
    ClaimTick,
    DefineJob,
    EndAttempt,
    Heartbeat,
    RegisterAgent,
    StartOrchestrator,
    TakeUpRun,
)
from tests.unit.stories import START, Story, given

if TYPE_CHECKING:
    from service.commands import SetPolicy

JOB, RUNNER, OTHER = "poll", "process-1", "process-2"

_PLAIN: dict[str, Any] = {
    "agent": "ann",
    "endpoint": "/poll",
    "task": None,
    "cron": "* * * * *",
    "every_seconds": None,
    "timezone": "UTC",
    "tokens": 0,
    "timeout_seconds": 30.0,
    "retries": 0,
    "overlap": "skip",
    "catch_up_seconds": 60.0,
    "jitter_seconds": 0.0,
    "pause_on_failure": False,
    "enabled": True,
    "resources": None,
}


def definition(**fields: Any) -> JobDefinition:
    """A job that calls ann every minute, with these fields changed."""
    assert fields.keys() <= _PLAIN.keys()
    return JobDefinition(**{**_PLAIN, **fields})


def define(name: str = JOB, **fields: Any) -> DefineJob:
    """The command that defines such a job, from the settings unless `source` says otherwise."""
    return DefineJob(name=name, source=fields.pop("source", "settings"), definition=definition(**fields))


def job_row(name: str = JOB, **fields: Any) -> JobRow:
    """The row of such a job."""
    return JobRow(
        name=name,
        source="settings",
        **structs.asdict(definition(**fields)),
        removed=False,
        removed_by=None,
        paused=False,
        pause_note=None,
        ticked_until=START,
        buffered_tick=None,
        position=1,
    )


def a_squad(policy: SetPolicy | None = None) -> Story:
    """A squad with a running orchestrator, and with ann, who is idle."""
    story = given(StartOrchestrator(), policy=policy)
    for name in ("orchestrator", "ann"):
        story.given(RegisterAgent(name=name, role="agent"))
    return story.given(Heartbeat(agent="orchestrator"))


def with_job(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """The same squad with a job."""
    return a_squad(policy).given(define(**fields))


def claim(runner: str = RUNNER, name: str = JOB) -> ClaimTick:
    """A process's claim of the ticks that are due."""
    return ClaimTick(name=name, runner=runner)


def take_up(run_id: str, runner: str = OTHER) -> TakeUpRun:
    """Another process's attempt to take a run over."""
    return TakeUpRun(run_id=run_id, runner=runner)


def end_attempt(run_id: str, *, succeeded: bool = True, attempt: int = 1, **fields: Any) -> EndAttempt:
    """The end of an attempt."""
    details: dict[str, Any] = {
        "runner": RUNNER,
        "reason": None if succeeded else "no answer",
        "report": "it is done" if succeeded else "it is not done",
        "answered": succeeded,
        **fields,
    }
    return EndAttempt(run_id=run_id, attempt=attempt, succeeded=succeeded, **details)

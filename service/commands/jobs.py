"""Commands about jobs and their runs."""

from __future__ import annotations

from pydantic import InstanceOf

from eventstore.events import JobDefinition, JobSource
from service.commands.base import Command
from service.commands.usage import UsageReport
from service.values import Id, JsonObject, Name, ShortText, Text


class DefineJob(Command):
    """Add a job to the schedule, or change it."""

    name: Name
    source: JobSource
    definition: InstanceOf[JobDefinition]


class RemoveJob(Command):
    """Remove a job from the schedule."""

    name: Name


class WithdrawJob(Command):
    """Remove a job that the settings no longer contain from the schedule."""

    name: Name


class PauseJob(Command):
    """Skip a job's ticks from now on."""

    name: Name
    note: ShortText | None = None


class ResumeJob(Command):
    """Run a job's ticks again."""

    name: Name
    note: ShortText | None = None


class RunJob(Command):
    """Run a job now, regardless of its schedule."""

    name: Name
    runner: Name | None = None
    """The process that is to carry it out; None for the first that takes it up."""


class ClaimTick(Command):
    """Give a job's due ticks their outcomes: a run in this process, or that they were skipped or missed."""

    name: Name
    runner: Name


class TakeUpRun(Command):
    """Take up a run whose next attempt is due, whose process has vanished, or that no process held yet."""

    run_id: Id
    runner: Name


class RenewRun(Command):
    """Renew the lease of a run."""

    run_id: Id
    runner: Name


class EndAttempt(UsageReport):
    """Report how an attempt ended."""

    run_id: Id
    runner: Name
    attempt: int
    succeeded: bool
    reason: Text | None = None
    ours: bool = False
    """Whether the failure was the orchestrator's, for example because it was stopped, and not the job's."""
    answered: bool = False
    """Whether the agent was called and succeeded."""
    report: Text
    """The text of the message to the squad."""
    data: JsonObject | None = None

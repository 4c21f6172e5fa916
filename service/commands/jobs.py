"""What can be asked about jobs and their runs."""

from __future__ import annotations

from pydantic import InstanceOf

from eventstore.events import JobDefinition, JobSource
from service.commands.base import Command
from service.values import Id, JsonObject, Name, ShortText, Text, Tokens


class DefineJob(Command):
    """Put a job on the schedule, or change it."""

    name: Name
    source: JobSource
    definition: InstanceOf[JobDefinition]


class RemoveJob(Command):
    """Take a job off the schedule."""

    name: Name


class WithdrawJob(Command):
    """Take a job off the schedule that the settings do not have any more."""

    name: Name


class PauseJob(Command):
    """Skip a job's ticks from here on."""

    name: Name
    note: ShortText | None = None


class ResumeJob(Command):
    """Run a job's ticks again."""

    name: Name
    note: ShortText | None = None


class RunJob(Command):
    """Run a job now, whatever its schedule says."""

    name: Name
    runner: Name | None = None
    """The process that is to carry it out; None: whichever takes it up first."""


class ClaimTick(Command):
    """Give a job's due ticks their outcomes: a run in this process, or whatever else becomes of them."""

    name: Name
    runner: Name


class TakeUpRun(Command):
    """Take up a run whose next attempt is due, whose process has vanished, or that never had one."""

    run_id: Id
    runner: Name


class RenewRun(Command):
    """Say that a run goes on."""

    run_id: Id
    runner: Name


class EndAttempt(Command):
    """Say how an attempt ended."""

    run_id: Id
    runner: Name
    attempt: int
    succeeded: bool
    reason: Text | None = None
    ours: bool = False
    """Whether it failed by the orchestrator, such as one that was stopped: no failure of the job's own."""
    tokens_used: Tokens | None = None
    answered: bool = False
    """Whether the agent was called, and did what it was asked."""
    report: Text
    """What is told the squad in a message."""
    data: JsonObject | None = None

"""What the squad can be asked to do: imperative, frozen, checked for shape and nothing else.

Field names are the API's. A command knows no policy; whether it may happen is decided in `service.decide`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from eventstore.events import (
    AgentStatus,
    EmailStatus,
    JobDefinition,
    JobSource,
    OperationOutcome,
    TaskPriority,
    TaskStatus,
)
from service.values import (
    ExternalId,
    Id,
    JsonObject,
    Name,
    PositiveTokens,
    Priority,
    Resources,
    ShortText,
    Text,
    Timezone,
    Tokens,
    TtlSeconds,
    Url,
)


class Command(BaseModel):
    """An intent."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @property
    def acting_agent(self) -> str | None:
        """The agent that asks, where the command names one."""
        return getattr(self, "agent", None)


# Agents and messages ----------------------------------------------------------------------------------


class RegisterAgent(Command):
    """Enter an agent, or set its role, url and priority anew."""

    name: Name
    role: Name
    url: Url | None = None
    """Base URL where the agent is called; without it, the service's default."""
    priority: Priority = 0


class Heartbeat(Command):
    """Say that an agent lives, and optionally what it is at."""

    agent: Name
    status: AgentStatus | None = None


class SendMessage(Command):
    """Send a message to one agent, or (no `to_agent`) to all."""

    from_agent: Name
    to_agent: Name | None = None
    message: Text = Field(min_length=1)
    task_id: ExternalId | None = None
    data: JsonObject | None = None

    @property
    def acting_agent(self) -> str | None:
        """The sender."""
        return self.from_agent


class AcknowledgeMessage(Command):
    """Take a message out of an agent's inbox."""

    message_id: Id
    agent: Name


# Operations -------------------------------------------------------------------------------------------


class StartOperation(Command):
    """Claim resources for a piece of work."""

    agent: Name
    action: Name
    resources: Resources
    """What the work is on, by kind, such as {"emailId": "email-123"}."""
    ttl_seconds: TtlSeconds | None = None
    """After how many seconds without a heartbeat the operation expires; default: the policy's timeout."""


class CheckOperation(Command):
    """Ask whether a claim would conflict. Changes nothing."""

    agent: Name
    action: Name
    resources: Resources


class RenewOperation(Command):
    """Say that the work goes on."""

    operation_id: Id


class FinishOperation(Command):
    """End the work and give its claims back."""

    operation_id: Id
    outcome: OperationOutcome
    tokens_used: Tokens | None = None
    """Tokens spent on it, recorded as use of the agent."""


# Budget -----------------------------------------------------------------------------------------------


class SetPolicy(Command):
    """Change the squad's rules; what is not named stays as it is."""

    daily_tokens: Tokens | None = None
    agent_limits: dict[Name, Tokens] | None = None
    reset_hour: int | None = Field(default=None, ge=0, le=23)
    timezone: Timezone | None = None
    conflict_window_seconds: TtlSeconds | None = None
    operation_timeout_seconds: TtlSeconds | None = None
    idle_after_minutes: float | None = Field(default=None, gt=0, le=1_000_000)
    offline_after_minutes: float | None = Field(default=None, gt=0, le=1_000_000)


class SetBudget(Command):
    """Change the daily budget, the agents' limits, or both."""

    daily_tokens: Tokens | None = None
    agent_limits: dict[Name, Tokens] | None = Field(default=None, max_length=1_000)
    """Tokens a day by agent. Replaces all limits; an agent that is not named has none."""

    @model_validator(mode="after")
    def _something(self) -> SetBudget:
        if self.daily_tokens is None and self.agent_limits is None:
            raise ValueError("name daily_tokens, agent_limits, or both")
        return self


class CheckBudget(Command):
    """Ask whether a reservation would be granted. Changes nothing."""

    agent: Name
    tokens: PositiveTokens


class ReserveTokens(Command):
    """Set tokens aside before spending them."""

    agent: Name
    tokens: PositiveTokens
    ttl_seconds: TtlSeconds | None = None
    """After how many seconds an unsettled reservation is given back; default 300."""


class SettleReservation(Command):
    """End a reservation with what was really used."""

    reservation_id: Id
    tokens_used: Tokens


class ReleaseReservation(Command):
    """Give a reservation back unused."""

    reservation_id: Id


class RecordUsage(Command):
    """Record tokens that were spent. Never refused: either `tokens`, or input and output tokens."""

    agent: Name
    tokens: Tokens | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    model: Name | None = None
    operation_id: Id | None = None
    task_id: ExternalId | None = None

    @model_validator(mode="after")
    def _one_way_of_counting(self) -> RecordUsage:
        parts = (self.input_tokens, self.output_tokens)
        if self.tokens is None and None in parts:
            raise ValueError("name tokens, or both input_tokens and output_tokens")
        if self.tokens is not None and None not in parts and self.tokens != self.total:
            raise ValueError("tokens must be the sum of input_tokens and output_tokens")
        return self

    @property
    def total(self) -> int:
        """All tokens, whichever way they were counted."""
        if self.input_tokens is not None and self.output_tokens is not None:
            return self.input_tokens + self.output_tokens
        return self.tokens or 0


# Tasks and e-mails ------------------------------------------------------------------------------------


class CreateTask(Command):
    """Put a task on the board."""

    title: ShortText
    description: Text | None = None
    status: TaskStatus = "new"
    assigned_agent: Name | None = None
    priority: TaskPriority = "medium"
    deliverable_url: Url | None = None


class UpdateTask(Command):
    """Change what is named of a task."""

    task_id: Id
    title: ShortText = ""
    description: Text | None = None
    status: TaskStatus = "new"
    assigned_agent: Name | None = None
    priority: TaskPriority = "medium"
    deliverable_url: Url | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that were named, None where one is to be cleared."""
        return _named(self, "task_id")


class LogEmail(Command):
    """Log a received e-mail, once for each Gmail message id."""

    gmail_message_id: ExternalId
    from_email: ShortText
    subject: Text | None = None
    category: Name = "unclassified"
    status: EmailStatus = "unread"
    handled_by: Name | None = None
    payload: JsonObject | None = None


class UpdateEmail(Command):
    """Change what is named of an e-mail."""

    email_id: Id
    category: Name = ""
    status: EmailStatus = "unread"
    handled_by: Name | None = None
    payload: JsonObject | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that were named, None where one is to be cleared."""
        return _named(self, "email_id")


# The orchestrator -------------------------------------------------------------------------------------


class StartOrchestrator(Command):
    """Let jobs fire and agents be called."""

    only_if_new: bool = False
    """Do nothing where the orchestrator was ever started or stopped before."""


class StopOrchestrator(Command):
    """Let no job fire and no agent be called."""


class PassTime(Command):
    """Let happen what the clock makes happen: expiry, a new budget day, agents gone quiet."""

    kind: Literal["clock"] = "clock"


# Jobs and their runs ----------------------------------------------------------------------------------


class DefineJob(Command):
    """Put a job on the schedule, or change it."""

    name: Name
    source: JobSource
    definition: JobDefinition


class RemoveJob(Command):
    """Take a job off the schedule."""

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
    runner: Name
    """The process that is to carry it out."""


class ClaimTick(Command):
    """Give a job's due ticks their outcomes: a run in this process, or whatever else becomes of them."""

    name: Name
    runner: Name


class TakeUpRun(Command):
    """Take up a run whose next attempt is due, or whose process has vanished."""

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
    tokens_used: Tokens | None = None
    report: Text
    """What is told the squad in a message."""
    data: JsonObject | None = None


def _named(command: Command, *but: str) -> dict[str, Any]:
    return {name: getattr(command, name) for name in command.model_fields_set if name not in but}


AnyCommand = (
    RegisterAgent
    | Heartbeat
    | SendMessage
    | AcknowledgeMessage
    | StartOperation
    | RenewOperation
    | FinishOperation
    | SetPolicy
    | SetBudget
    | ReserveTokens
    | SettleReservation
    | ReleaseReservation
    | RecordUsage
    | CreateTask
    | UpdateTask
    | LogEmail
    | UpdateEmail
    | DefineJob
    | RemoveJob
    | PauseJob
    | ResumeJob
    | RunJob
    | ClaimTick
    | TakeUpRun
    | RenewRun
    | EndAttempt
    | StartOrchestrator
    | StopOrchestrator
    | PassTime
)
"""Every command. `service.decide.decide` matches over it, closed with `assert_never`."""

"""The seed facade's requests and answers, in its own terms: camelCase, and rows as in its tables."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from eventstore.events import AgentStatus, TaskPriority, TaskStatus
from service.documented import Documented
from service.http.answers import Answer, Message, Task
from service.values import ExternalId, Id, JsonObject, Name, ShortText, Text, Url

# In ---------------------------------------------------------------------------------------------------


class _Body(BaseModel):
    """A body in camelCase. Unknown fields are ignored, as in the seed."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def _camel(name: str, *, default: Any = ...) -> Any:
    head, *rest = name.split("_")
    camel = head + "".join(part.title() for part in rest)
    return Field(default=default, validation_alias=AliasChoices(camel, name), serialization_alias=camel)


class SwitchBody(_Body):
    """Start the orchestrator, or shut it down."""

    action: Literal["orchestrator-init", "orchestrator-shutdown"]


class MessageBody(_Body):
    """A message to one agent or, without `toAgent`, to all."""

    action: Literal["orchestrator-message"]
    from_agent: Name = _camel("from_agent")
    to_agent: Name | None = _camel("to_agent", default=None)
    message: Text = Field(min_length=1)
    task_id: ExternalId | None = _camel("task_id", default=None)
    data: JsonObject | None = None


class TaskBody(_Body):
    """A task to create."""

    title: ShortText
    description: Text | None = None
    status: TaskStatus = "new"
    assigned_agent: Name | None = _camel("assigned_agent", default=None)
    priority: TaskPriority = "medium"
    deliverable_url: Url | None = _camel("deliverable_url", default=None)


class TaskChangeBody(TaskBody):
    """A task to change: its id and the fields to change."""

    id: Id
    title: ShortText = ""


def _moment(value: object) -> date | datetime:
    text = str(value)
    try:
        moment = (date if len(text) == len("2026-01-31") else datetime).fromisoformat(text)
    except ValueError:
        moment = date.min
    if not 1970 <= moment.year <= 9998:
        raise ValueError("must be a date such as 2026-01-31, or a time such as 2026-01-31T09:00:00Z")
    return moment


Moment = Annotated[date | datetime, BeforeValidator(_moment)]
"""A date or a time; without a time zone it is UTC."""


class SquadQuery(Documented):
    """The query parameters of `GET /api/squad`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    action: str | None = Field(default=None, json_schema_extra={"enum": ["orchestrator-status"]})
    """`orchestrator-status` for the orchestrator alone."""
    date_from: Moment | None = Field(default=None, alias="dateFrom")
    """Only tasks and messages created at this time or later."""
    date_to: Moment | None = Field(default=None, alias="dateTo")
    """Only tasks and messages created up to this time; a date includes its whole day."""
    agent_type: Name | None = Field(default=None, alias="agentType")
    """Only agents with this role, and their tasks and messages."""
    agent_name: Name | None = Field(default=None, alias="agentName")
    """Only this agent, and its tasks and messages."""

    @property
    def since(self) -> datetime | None:
        """The start of the requested period."""
        return _first_moment(self.date_from) if self.date_from else None

    @property
    def until(self) -> datetime | None:
        """The end of the requested period, exclusive."""
        if self.date_to is None:
            return None
        whole = timedelta(microseconds=1) if isinstance(self.date_to, datetime) else timedelta(days=1)
        return _first_moment(self.date_to) + whole


def _first_moment(moment: date | datetime) -> datetime:
    if isinstance(moment, datetime):
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return datetime.combine(moment, time(tzinfo=UTC))


# Out --------------------------------------------------------------------------------------------------


class TokenBudget(Answer):
    """The day's budget. Reserved tokens do not count as remaining."""

    total: int
    used: int
    remaining: int
    agentUsage: dict[str, int]  # noqa: N815 - the seed's word


class ActiveOperation(BaseModel):
    """An active operation; each resource that it claims is a field of its own, such as `emailId`."""

    model_config = ConfigDict(extra="allow")

    id: str
    agents: list[str]
    action: str
    timestamp: datetime


class OrchestratorStatus(Answer):
    """The orchestrator now."""

    tokenBudget: TokenBudget  # noqa: N815 - the seed's word
    activeOperations: list[ActiveOperation]  # noqa: N815 - the seed's word
    timestamp: datetime


class ScheduledJob(Answer):
    """An enabled job: its cron expression or interval, and when it runs next."""

    name: str
    schedule: str
    paused: bool
    nextRun: datetime | None  # noqa: N815 - the seed's word


class SquadOrchestrator(Answer):
    """The orchestrator, running or not."""

    isRunning: bool  # noqa: N815 - the seed's word
    startedAt: datetime | None  # noqa: N815 - the seed's word
    tokenBudget: TokenBudget  # noqa: N815 - the seed's word
    activeOperations: list[ActiveOperation]  # noqa: N815 - the seed's word
    scheduledJobs: list[ScheduledJob]  # noqa: N815 - the seed's word


class SquadAgent(Answer):
    """An agent, with the columns of `squad_agents` that the facade shows."""

    id: str
    name: str
    role: str
    status: AgentStatus
    last_active: datetime


class SquadOverview(Answer):
    """The squad at a glance, newest first."""

    tasks: list[Task]  # type: ignore[valid-type]
    activity: list[Message]  # type: ignore[valid-type]
    agents: list[SquadAgent]
    orchestrator: SquadOrchestrator


class Done(Answer):
    """What was done, and its position in the log."""

    success: Literal[True]
    message: str
    position: int
    id: str | None = None
    """The message's id, if one was sent."""
    task: dict[str, Any] | None = None
    """The task, if one was created or changed."""


class SeedError(Answer):
    """An error under `/api/squad`: `error` for people, and `details`, such as a list of fields."""

    error: str
    details: Any = None

"""The answers to writes, as models: each has the position of its last event."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from eventstore.events import AgentStatus, EmailStatus, OperationOutcome, TaskPriority, TaskStatus
from service.http.answers import Answer


class Written(Answer):
    """The answer to a write."""

    position: int


class AgentWritten(Written):
    """An agent as it is now."""

    id: str
    name: str
    role: str
    url: str | None
    priority: int
    status: AgentStatus
    last_active: datetime


class HeartbeatTaken(Written):
    """The agent's status as it is now."""

    name: str
    status: AgentStatus
    last_active: datetime


class MessageTaken(Written):
    """The message's id."""

    id: str


class Acknowledged(Written):
    """The message that was acknowledged, the agent that did so, and whether it already had before."""

    id: str
    agent: str
    already_acknowledged: bool


class Claimed(Written):
    """The claim. Without a heartbeat it blocks others until `blocks_until` and expires at `expires_at`.

    `fencing_token` is larger than that of every earlier claim. Pass it on with each write: a store that has
    seen a larger one can reject a writer whose claim has expired.
    """

    id: str
    fencing_token: int
    started_at: datetime
    blocks_until: datetime
    expires_at: datetime


class Renewed(Written):
    """The claim's new times."""

    id: str
    blocks_until: datetime
    expires_at: datetime


class Finished(Written):
    """How the operation ended."""

    id: str
    outcome: OperationOutcome
    tokens_used: int | None
    ended_at: datetime


class Policy(Written):
    """The rules in force now."""

    daily_tokens: int
    agent_limits: dict[str, int]
    warning_percents: list[int]
    reset_hour: int
    timezone: str
    conflict_window_seconds: float
    operation_timeout_seconds: float
    idle_after_minutes: float
    offline_after_minutes: float


class Reserved(Written):
    """The reservation, and how much the agent may still take today, its own limit included."""

    id: str
    expires_at: datetime
    remaining: int


class Settled(Written):
    """What was used, and how much the agent may still take today."""

    id: str
    tokens_used: int
    remaining: int


class Released(Written):
    """How much the agent may still take today."""

    id: str
    remaining: int


class UsageTaken(Written):
    """What was recorded, and how much the agent may still take today; negative if it has overspent."""

    tokens: int
    remaining: int


class TaskWritten(Written):
    """A task as it is now."""

    id: str
    title: str
    description: str | None
    status: TaskStatus
    assigned_agent: str | None
    priority: TaskPriority
    deliverable_url: str | None
    created_at: datetime
    updated_at: datetime


class JobNamed(Written):
    """The job's name."""

    name: str


class JobPaused(Written):
    """Whether the job is paused, and the note."""

    name: str
    paused: bool
    note: str | None


class RunBegun(Written):
    """A run that has started."""

    id: str
    job: str
    tick: datetime
    status: str
    attempts: int
    started_at: datetime


class EmailWritten(Written):
    """An e-mail as it is now."""

    id: str
    gmail_message_id: str
    from_email: str
    subject: str | None
    category: str
    status: EmailStatus
    handled_by: str | None
    payload: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime


class Forgotten(Written):
    """How much became unreadable. `in_plain` counts e-mails that did not: they were logged unencrypted."""

    emails: int
    messages: int
    in_plain: int

"""The events of agents."""

from __future__ import annotations

from typing import ClassVar, Literal

from eventstore.events.base import Event

AgentStatus = Literal["active", "idle", "offline"]
StatusReason = Literal[
    "heartbeat", "activity", "inactivity", "operation_started", "run_started", "run_ended"
]


class _AgentEvent(Event, frozen=True, kw_only=True):
    agent: str
    """The agent's name."""

    @property
    def stream(self) -> str:
        return f"agent-{self.agent}"


class AgentRegistered(_AgentEvent, frozen=True, kw_only=True):
    """An agent joined the squad: it was registered, or (`automatic`) acted without being registered."""

    type: ClassVar[str] = "agent_registered"
    agent_id: str
    """The agent's id in `squad_agents`."""
    role: str
    """What it does, in words."""
    url: str | None
    """Where it is called; null for the service's `agents_url`."""
    priority: int
    """Of the jobs that are due at the same moment, those of agents with a higher one are claimed first."""
    automatic: bool
    """Whether it acted without having been registered."""


class AgentProfileChanged(_AgentEvent, frozen=True, kw_only=True):
    """An agent's role, URL or priority was changed."""

    type: ClassVar[str] = "agent_profile_changed"
    role: str
    """What it does, in words."""
    url: str | None
    """Where it is called; null for the service's `agents_url`."""
    priority: int
    """As in `agent_registered`."""


class AgentStatusChanged(_AgentEvent, frozen=True, kw_only=True):
    """An agent's status changed, and why."""

    type: ClassVar[str] = "agent_status_changed"
    schema_version: ClassVar[int] = 2
    previous: AgentStatus
    """The status until now."""
    status: AgentStatus
    """The status from now on."""
    reason: StatusReason
    """What changed it."""


class AgentHeartbeatRecorded(_AgentEvent, frozen=True, kw_only=True):
    """An agent reported that it is alive. Recorded only if that moves `last_active` noticeably."""

    type: ClassVar[str] = "agent_heartbeat_recorded"

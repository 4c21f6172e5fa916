"""Decisions about agents: registration and status.

An agent is active while it has an operation in progress or was heard from within `idle_after_minutes`. Then
it becomes idle, and after `offline_after_minutes` offline; it skips idle if the latter is not longer.
Everything that an agent does is a sign of life; what is done on its behalf, such as a run that it does not
answer, is not. An agent may also report its status itself, with a heartbeat.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from eventstore.events import (
    AgentHeartbeatRecorded,
    AgentProfileChanged,
    AgentRegistered,
    AgentStatus,
    AgentStatusChanged,
    StatusReason,
)
from eventstore.recorded import NewEvent
from projections.agents import AGENTS, AgentRow
from service.decide.decision import Accepted, Decision, DecisionContext, Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from projections.budgets import PolicyRow
    from service.commands import Heartbeat, RegisterAgent
    from service.memory.state import State

HEARTBEAT_RESOLUTION = timedelta(seconds=30)
"""A heartbeat that changes no status is recorded only if the last sign of life is older than this, or than
a quarter of the silence after which an agent is no longer active."""

UNKNOWN_ROLE = "unknown"
"""The role of an agent that acted before it was registered."""


def ensure_active(
    state: State, agent: str, at: DecisionContext, reason: StatusReason = "activity"
) -> list[NewEvent]:
    """Return the events that precede an agent's action, if needed: it is registered, or becomes active."""
    row = state.rows(AGENTS).get(agent)
    if row is None:
        return [
            NewEvent(
                AgentRegistered(
                    agent=agent,
                    agent_id=at.new_id(),
                    role=UNKNOWN_ROLE,
                    url=None,
                    priority=0,
                    automatic=True,
                )
            )
        ]
    if row.status != "active":
        return [
            NewEvent(
                AgentStatusChanged(agent=agent, previous=row.status, status="active", reason=reason),
                caused_by=row.position,
            )
        ]
    return []


def register(state: State, command: RegisterAgent, at: DecisionContext) -> Decision:
    """Register an agent, or change the profile of a registered one."""
    row = state.rows(AGENTS).get(command.name)
    profile = {"role": command.role, "url": command.url, "priority": command.priority}
    if row is None:
        agent_id = at.new_id()
        event = AgentRegistered(
            agent=command.name,
            agent_id=agent_id,
            role=command.role,
            url=command.url,
            priority=command.priority,
            automatic=False,
        )
        reply = {"id": agent_id, "name": command.name, **profile, "status": "idle", "last_active": at.now}
        return Accepted([NewEvent(event)], reply)
    reply = {
        "id": row.id,
        "name": row.name,
        **profile,
        "status": row.status,
        "last_active": row.last_active,
        "position": row.position,
    }
    if (row.role, row.url, row.priority) == tuple(profile.values()):
        return Accepted([], reply)
    changed = AgentProfileChanged(
        agent=row.name, role=command.role, url=command.url, priority=command.priority
    )
    return Accepted([NewEvent(changed, caused_by=row.position)], reply)


def heartbeat(state: State, command: Heartbeat, at: DecisionContext) -> Decision:
    """Record an agent's sign of life, and the status that it reports."""
    row = state.rows(AGENTS).get(command.agent)
    if row is None:
        return Refused(Refusal("agent_not_found", f"no agent is called {command.agent!r}"))
    status = command.status or "active"
    reply = {"name": row.name, "status": status, "last_active": at.now}
    if status != row.status:
        event = AgentStatusChanged(agent=row.name, previous=row.status, status=status, reason="heartbeat")
        return Accepted([NewEvent(event, caused_by=row.position)], reply)
    resolution = min(HEARTBEAT_RESOLUTION, allowed_silence(state.policy)[0] / 4)
    if at.now - row.last_active >= resolution:
        return Accepted([NewEvent(AgentHeartbeatRecorded(agent=row.name))], reply)
    return Accepted([], {**reply, "last_active": row.last_active, "position": row.position})


def allowed_silence(policy: PolicyRow) -> tuple[timedelta, timedelta]:
    """Return how long an agent without work may be silent and still be active, and still be idle."""
    until_offline = timedelta(minutes=policy.offline_after_minutes)
    return min(timedelta(minutes=policy.idle_after_minutes), until_offline), until_offline


def status_without_work(policy: PolicyRow, row: AgentRow, now: datetime) -> AgentStatus:
    """Return the status of an agent without work, given its last sign of life."""
    silent = now - row.last_active
    return "offline" if silent >= timedelta(minutes=policy.offline_after_minutes) else "idle"


def inactive_agents(state: State, now: datetime) -> Iterator[NewEvent]:
    """Yield a status change for each agent that has been silent for too long."""
    policy = state.policy
    of_active, of_idle = allowed_silence(policy)
    for row in state.silent_since(now - of_active, now - of_idle):
        event = AgentStatusChanged(
            agent=row.name,
            previous=row.status,
            status=status_without_work(policy, row, now),
            reason="inactivity",
        )
        yield NewEvent(event, caused_by=row.position)

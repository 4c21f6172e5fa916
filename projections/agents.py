"""squad_agents: who belongs to the squad, what they do, and when they were last heard of.

An agent is heard of when it does something itself, or has done what a run asked of it. What others do on
its behalf, such as starting a scheduled run, is no sign of life.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from eventstore.events import (
    AgentHeartbeatRecorded,
    AgentProfileChanged,
    AgentRegistered,
    AgentStatus,
    AgentStatusChanged,
    ConflictDetected,
    MessageAcknowledged,
    MessageSent,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    RunFinished,
    RunStarted,
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from projections.projection import Projection, Row, Table, key_in, require

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View


ORCHESTRATOR_AGENT = "orchestrator"
"""The agent that reports on runs without an agent, and that all reports are sent to."""

_INTERNAL_ACTOR_PREFIXES = ("system:", "cli:")
"""Prefixes of actors that act on behalf of agents: parts of the service, and people at a terminal."""

_PASSIVE_REASONS = frozenset({"inactivity", "run_started", "run_ended"})


class AgentRow(Row, frozen=True):
    """An agent. `operations` counts those in progress; `position` is that of its last event."""

    id: str
    name: str
    role: str
    status: AgentStatus
    last_active: datetime
    url: str | None
    priority: int
    operations: int
    registered_at: datetime
    position: int


AGENTS = Table[str, AgentRow](
    "squad_agents",
    AgentRow,
    key=("name",),
    types=(
        "uuid",
        "text",
        "text",
        "text",
        "timestamptz",
        "text",
        "integer",
        "integer",
        "timestamptz",
        "bigint",
    ),
)

agents = Projection("agents", (AGENTS,), fold_version=2)


class _OfAgent(Protocol):
    @property
    def agent(self) -> str: ...


_AGENT_ROW = (key_in(AGENTS, "agent"),)


@agents.on(AgentRegistered)
def _registered(view: View, event: AgentRegistered, recorded: AnyRecorded) -> None:
    row = AgentRow(
        id=event.agent_id,
        name=event.agent,
        role=event.role,
        # An agent that registers by acting is active; one that somebody else registered has yet to appear.
        status="active" if event.automatic else "idle",
        last_active=recorded.recorded_at,
        url=event.url,
        priority=event.priority,
        operations=0,
        registered_at=recorded.recorded_at,
        position=recorded.position,
    )
    view.rows(AGENTS).put(event.agent, row)


@agents.on(AgentProfileChanged, reads=_AGENT_ROW)
def _profile_changed(view: View, event: AgentProfileChanged, recorded: AnyRecorded) -> None:
    row = require(view, AGENTS, event.agent).replaced(
        role=event.role, url=event.url, priority=event.priority, position=recorded.position
    )
    view.rows(AGENTS).put(event.agent, row)


@agents.on(AgentStatusChanged, reads=_AGENT_ROW)
def _status_changed(view: View, event: AgentStatusChanged, recorded: AnyRecorded) -> None:
    if event.reason not in _PASSIVE_REASONS:
        _acted(view, event, recorded)
    row = require(view, AGENTS, event.agent).replaced(status=event.status, position=recorded.position)
    view.rows(AGENTS).put(event.agent, row)


@agents.on(
    AgentHeartbeatRecorded,
    MessageSent,
    MessageAcknowledged,
    OperationRenewed,
    ConflictDetected,
    TokensSettled,
    TokensUsed,
    TokensDenied,
    reads=_AGENT_ROW,
)
def _acted(view: View, event: _OfAgent, recorded: AnyRecorded) -> None:
    _note_activity(view, event.agent, recorded, sign_of_life=_is_own_action(event, recorded))


def _is_own_action(event: _OfAgent, recorded: AnyRecorded) -> bool:
    return event.agent == ORCHESTRATOR_AGENT or not recorded.actor.startswith(_INTERNAL_ACTOR_PREFIXES)


def _note_activity(
    view: View, agent: str, recorded: AnyRecorded, *, sign_of_life: bool, work: int = 0
) -> None:
    row = require(view, AGENTS, agent)
    row = row.replaced(
        last_active=recorded.recorded_at if sign_of_life else row.last_active,
        operations=row.operations + work,
        position=recorded.position,
    )
    view.rows(AGENTS).put(agent, row)


@agents.on(TokensReleased, reads=_AGENT_ROW)
def _released(view: View, event: TokensReleased, recorded: AnyRecorded) -> None:
    if event.reason == "released":
        _acted(view, event, recorded)


@agents.on(TokensReserved, reads=_AGENT_ROW)
def _reserved(view: View, event: TokensReserved, recorded: AnyRecorded) -> None:
    _note_activity(view, event.agent, recorded, sign_of_life=_is_own_claim(event, recorded))


@agents.on(OperationStarted, reads=_AGENT_ROW)
def _operation_started(view: View, event: OperationStarted, recorded: AnyRecorded) -> None:
    _note_activity(view, event.agent, recorded, sign_of_life=_is_own_claim(event, recorded), work=1)


def _is_own_claim(event: TokensReserved | OperationStarted, recorded: AnyRecorded) -> bool:
    # What is claimed or reserved for a run names the job as its cause, even if a client asked for the run.
    return recorded.caused_by is None and _is_own_action(event, recorded)


@agents.on(OperationFinished, reads=_AGENT_ROW)
def _operation_finished(view: View, event: OperationFinished, recorded: AnyRecorded) -> None:
    _note_activity(view, event.agent, recorded, sign_of_life=_is_own_action(event, recorded), work=-1)


@agents.on(OperationExpired, reads=_AGENT_ROW)
def _operation_expired(view: View, event: OperationExpired, recorded: AnyRecorded) -> None:
    # An operation that expires is no sign of life either.
    _note_activity(view, event.agent, recorded, sign_of_life=False, work=-1)


@agents.on(RunStarted, reads=_AGENT_ROW)
def _run_started(view: View, event: RunStarted, recorded: AnyRecorded) -> None:
    if event.agent:
        _note_activity(view, event.agent, recorded, sign_of_life=False, work=1)


@agents.on(RunFinished, reads=_AGENT_ROW)
def _run_finished(view: View, event: RunFinished, recorded: AnyRecorded) -> None:
    if event.agent:
        _note_activity(view, event.agent, recorded, sign_of_life=event.answered, work=-1)

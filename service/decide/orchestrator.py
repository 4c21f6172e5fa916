"""Decisions about the orchestrator itself: running or shut down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.events import OrchestratorStarted, OrchestratorStopped
from eventstore.recorded import NewEvent
from service.decide.decision import Accepted, Decision, DecisionContext

if TYPE_CHECKING:
    from service.commands import StartOrchestrator, StopOrchestrator
    from service.memory.state import State


def start(state: State, command: StartOrchestrator, at: DecisionContext) -> Decision:
    """Start the orchestrator; if it is already running, nothing changes."""
    row = state.orchestrator
    if row and (row.running or command.only_if_new):
        return Accepted(
            [], {"running": row.running, "started_at": row.started_at, "position": row.position}
        )
    started = NewEvent(OrchestratorStarted(), caused_by=row.position if row else None)
    return Accepted([started], {"running": True, "started_at": at.now})


def stop(state: State, command: StopOrchestrator, at: DecisionContext) -> Decision:
    """Shut the orchestrator down; if it is already down, nothing changes."""
    del command, at
    row = state.orchestrator
    if row and not row.running:
        return Accepted([], {"running": False, "position": row.position})
    stopped = NewEvent(OrchestratorStopped(), caused_by=row.position if row else None)
    return Accepted([stopped], {"running": False})

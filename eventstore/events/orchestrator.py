"""The events of the orchestrator itself."""

from __future__ import annotations

from typing import ClassVar

from eventstore.events.base import Event


class _OrchestratorEvent(Event, frozen=True, kw_only=True):
    @property
    def stream(self) -> str:
        return "orchestrator"


class OrchestratorStarted(_OrchestratorEvent, frozen=True, kw_only=True):
    """The orchestrator was started: jobs run and agents are called."""

    type: ClassVar[str] = "orchestrator_started"


class OrchestratorStopped(_OrchestratorEvent, frozen=True, kw_only=True):
    """The orchestrator was stopped: no job runs and no agent is called until it is started again."""

    type: ClassVar[str] = "orchestrator_stopped"

"""What happens to the orchestrator itself."""

from __future__ import annotations

from typing import ClassVar

from eventstore.events.base import Event


class _OrchestratorEvent(Event, frozen=True, kw_only=True):
    @property
    def stream(self) -> str:
        return "orchestrator"


class OrchestratorStarted(_OrchestratorEvent, frozen=True, kw_only=True):
    """Jobs may fire and agents may be called."""

    type: ClassVar[str] = "orchestrator_started"


class OrchestratorStopped(_OrchestratorEvent, frozen=True, kw_only=True):
    """No job fires and no agent is called until the orchestrator is started again."""

    type: ClassVar[str] = "orchestrator_stopped"

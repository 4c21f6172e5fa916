"""Build a larger decision event by event."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import TYPE_CHECKING

from eventstore.recorded import NewEvent
from service.decide.agents import ensure_active

if TYPE_CHECKING:
    from eventstore.events import AnyEvent, StatusReason
    from service.decide.decision import DecisionContext
    from service.memory.state import State


class DecisionBuilder:
    """The events of one decision so far.

    They are not folded while the decision is made, so what later steps must know of earlier ones is kept
    here: the position that each event will have, which agents became active, what work they began and
    ended, and which claims and tokens were released.
    """

    def __init__(self, state: State, at: DecisionContext) -> None:
        self.state = state
        self.at = at
        self.events: list[NewEvent] = []
        self.released_tokens = Counter[tuple[date, str]]()
        """Released tokens by budget day and agent."""
        self.released_claims = set[str]()
        """Operations that end in this decision."""
        self.work = Counter[str]()
        """By agent, the change in its number of active runs and operations."""
        self._acted: set[str] = set()

    @property
    def position(self) -> int:
        """The position that the last event will have in the log."""
        return self.state.head.position + len(self.events)

    def add(self, event: AnyEvent, caused_by: int | None = None) -> int:
        """Add an event; return its position."""
        self.events.append(NewEvent(event, caused_by))
        return self.position

    def ensure_active(self, agent: str, reason: StatusReason = "activity") -> None:
        """Note that an agent acts: from here on it is registered and active."""
        if agent not in self._acted:
            self._acted.add(agent)
            self.events += ensure_active(self.state, agent, self.at, reason)

    def has_acted(self, agent: str) -> bool:
        """Whether the agent acted in this decision, and is therefore active."""
        return agent in self._acted

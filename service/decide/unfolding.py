"""What a larger decision comes to, event by event."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import TYPE_CHECKING

from eventstore.recorded import NewEvent
from service.decide.agents import arrive

if TYPE_CHECKING:
    from eventstore.events import AnyEvent, StatusReason
    from service.decide.decision import At
    from service.memory.state import State


class Unfolding:
    """The events of one decision so far.

    They are not folded while it is made, so what a later step must know of an earlier one is kept here: at
    which position each event will stand, which agents have arrived, what work they began and ended, which
    claims were let go, and which tokens were given back.
    """

    def __init__(self, state: State, at: At) -> None:
        self.state = state
        self.at = at
        self.events: list[NewEvent] = []
        self.given_back = Counter[tuple[date, str]]()
        """Tokens by budget day and agent."""
        self.let_go = set[str]()
        """Operations that end in this decision."""
        self.work = Counter[str]()
        """By how many each agent's pieces of work under way become more, or fewer."""
        self._arrived: set[str] = set()

    @property
    def position(self) -> int:
        """Where the last event will stand in the log."""
        return self.state.head.position + len(self.events)

    def add(self, event: AnyEvent, caused_by: int | None = None) -> int:
        """Adds an event; gives its position."""
        self.events.append(NewEvent(event, caused_by))
        return self.position

    def arrive(self, agent: str, reason: StatusReason = "activity") -> None:
        """Lets an agent act: from here on it is registered, and active."""
        if agent not in self._arrived:
            self._arrived.add(agent)
            self.events += arrive(self.state, agent, self.at, reason)

    def has_arrived(self, agent: str) -> bool:
        """Whether the agent acted in this decision, and so is active by now."""
        return agent in self._arrived

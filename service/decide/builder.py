"""Build a decision of several events, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventstore.recorded import GENESIS_HASH, NewEvent, Recorded
from service.decide.agents import ensure_active
from service.decide.decision import Accepted, Refused
from service.memory.draft import Draft

if TYPE_CHECKING:
    from eventstore.events import AnyEvent, StatusReason
    from service.decide.decision import DecisionContext
    from service.refusals import Refusal


class DecisionBuilder:
    """The events of one decision so far, and the squad as it will be with them."""

    __slots__ = ("_after", "at", "before", "events")

    def __init__(self, draft: Draft, at: DecisionContext) -> None:
        self.before = draft
        """The squad without them."""
        self.at = at
        self.events: list[NewEvent] = []
        self._after: Draft | None = None

    @property
    def position(self) -> int:
        """The position that the last event will have in the log."""
        return self.before.head.position + len(self.events)

    @property
    def state(self) -> Draft:
        """The squad with the events so far, which are folded only when it is asked for."""
        if not self.events:
            return self.before
        after = self._after = self._after or Draft(self.before, whole=True)
        for new in self.events[after.head.position - self.before.head.position :]:
            self._fold(after, new)
        return after

    def _fold(self, after: Draft, new: NewEvent) -> None:
        event, stream = new.event, new.event.stream
        foreseen = Recorded(
            position=after.head.position + 1,
            id="",
            stream=stream,
            version=after.next_version(stream),
            type=event.type,
            schema_version=event.schema_version,
            data="",
            actor=self.at.actor,
            caused_by=new.caused_by,
            correlation_id="",
            idempotency_key=None,
            recorded_at=self.at.now,
            hash=GENESIS_HASH,
        )
        after.fold(event, foreseen)

    def add(self, event: AnyEvent, caused_by: int | None = None) -> int:
        """Add an event; return its position."""
        events = self.events
        events.append(NewEvent(event, caused_by))
        return self.before.head.position + len(events)

    def append(self, new: NewEvent) -> int:
        """Add an event that already has its cause; return its position."""
        self.events.append(new)
        return self.position

    def ensure_active(self, agent: str, reason: StatusReason = "activity") -> None:
        """Note that an agent acts: from here on it is registered and active."""
        self.events += ensure_active(self.state, agent, self.at, reason)

    def accept(self, reply: dict[str, Any]) -> Accepted:
        """Accept the command, with the events so far."""
        return Accepted(self.events, reply)

    def refuse(self, refusal: Refusal) -> Refused:
        """Refuse the command, with the events so far as the record of it."""
        return Refused(refusal, self.events)

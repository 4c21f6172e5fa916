"""What the narrators have found so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore.events import PolicySet
from eventstore.recorded import Recorded
from service.explain import words
from service.explain.record import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.explain.record import LoggedEvent, LogQueries


class Narration:
    """The sentences of an explanation, in order, and the facts behind them."""

    def __init__(self) -> None:
        self.reasons: list[Reason] = []
        self.outcome: list[Reason] = []
        self.facts: dict[str, Any] = {}

    def add_reason(self, sentence: str, *shown_by: Recorded, items: Iterable[str] = ()) -> None:
        """Add a sentence on why it happened, with the events that show it and the items that it lists."""
        self.reasons.append(_reason(sentence, shown_by, items))

    def add_outcome(self, sentence: str, *shown_by: Recorded) -> None:
        """Add a sentence on the outcome, with the events that show it."""
        self.outcome.append(_reason(sentence, shown_by))


def _reason(sentence: str, shown_by: Iterable[Recorded], items: Iterable[str] = ()) -> Reason:
    return Reason(sentence, tuple(recorded.position for recorded in shown_by), tuple(items))


class Rules(NamedTuple):
    """The policy in force, and the event that set it."""

    policy: PolicySet
    at: Recorded

    @property
    def since(self) -> str:
        """Who set the rules, and when."""
        return f"set by {words.actor_name(self.at.actor)} {words.at(self.at)}"

    def facts(self, *fields: str) -> dict[str, Any]:
        """Some of the rules, and who set them when."""
        chosen = {name: getattr(self.policy, name) for name in fields}
        origin = {"position": self.at.position, "set_by": self.at.actor, "set_at": self.at.recorded_at}
        return {**chosen, **origin}


async def rules_at(past: LogQueries, position: int) -> Rules | None:
    """The rules in force at a position; None before there were any."""
    found = await past.last("policy", upto=position)
    return Rules(found.event, found.at) if found and isinstance(found.event, PolicySet) else None


def place(item: LoggedEvent) -> dict[str, Any]:
    """The position and time of an event, as facts."""
    return {"position": item.at.position, "recorded_at": item.at.recorded_at}

"""What a narrator has found so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore.events import PolicySet
from eventstore.recorded import Recorded
from service.explain import words
from service.explain.record import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.explain.record import Past, Told


class Telling:
    """The sentences of an answer, in their order, and the facts behind them."""

    def __init__(self) -> None:
        self.reasons: list[Reason] = []
        self.outcome: list[Reason] = []
        self.facts: dict[str, Any] = {}

    def say(self, sentence: str, *shown_by: Recorded, items: Iterable[str] = ()) -> None:
        """Adds a sentence of why it happened, the events that show it, and what it lists."""
        self.reasons.append(_reason(sentence, shown_by, items))

    def say_later(self, sentence: str, *shown_by: Recorded) -> None:
        """Adds a sentence of what became of it, and the events that show it."""
        self.outcome.append(_reason(sentence, shown_by))


def _reason(sentence: str, shown_by: Iterable[Recorded], items: Iterable[str] = ()) -> Reason:
    return Reason(sentence, tuple(recorded.position for recorded in shown_by), tuple(items))


class Rules(NamedTuple):
    """The policy that was in force, and where it was set."""

    policy: PolicySet
    at: Recorded

    @property
    def since(self) -> str:
        """Who set them, and when."""
        return f"set by {words.by(self.at.actor)} {words.at(self.at)}"

    def facts(self, *fields: str) -> dict[str, Any]:
        """Some of the rules, and where they come from."""
        chosen = {name: getattr(self.policy, name) for name in fields}
        origin = {"position": self.at.position, "set_by": self.at.actor, "set_at": self.at.recorded_at}
        return {**chosen, **origin}


async def rules_at(past: Past, position: int) -> Rules | None:
    """The rules that were in force at a position; None before there were any."""
    found = await past.last("policy", upto=position)
    return Rules(found.event, found.at) if found and isinstance(found.event, PolicySet) else None


def place(item: Told) -> dict[str, Any]:
    """Where an event stands, as facts."""
    return {"position": item.at.position, "recorded_at": item.at.recorded_at}

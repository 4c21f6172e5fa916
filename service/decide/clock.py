"""What the passing of time makes happen, and when something will next.

These events are decided at the beginning of a batch, so every command is judged in a squad whose clock is
right; a timer asks for them where no command comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from projections.keys import KEYS
from service.decide import agents, budget, keys, operations, rules
from service.state import EXPIRING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from eventstore.recorded import NewEvent
    from service.state import State

STEPS: tuple[Callable[[State, datetime], Iterable[NewEvent]], ...] = (
    rules.turn_of_day,
    operations.expired,
    budget.expired,
    agents.gone_quiet,
    keys.expired,
)
"""In this order, each looking at what the ones before did: an agent goes quiet after its work expired. What
each finds may be a great deal, and not all of it need be taken."""


def next_due(state: State) -> datetime | None:
    """When time will next make something happen, if nothing else does before. It can be too soon."""
    return min(_deadlines(state)) if state.has_policy else None


def _deadlines(state: State) -> Iterator[datetime]:
    policy, day = state.policy, state.day
    if day:
        yield day.ends_at
    for name in EXPIRING:
        yield state.spared_until.get(name) or state.first_to_expire(name)
    for agent in state.awake():
        if due := agents.quiet_since(policy, agent):
            yield due
    for key in state.all(KEYS):
        if key.expires_at:
            yield key.expires_at

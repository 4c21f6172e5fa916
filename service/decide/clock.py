"""What the passing of time makes happen, and when something will next.

These events are decided at the beginning of a batch, so every command is judged in a squad whose clock is
right; a timer asks for them where no command comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from projections.keys import KEYS
from service.decide import agents, budget, keys, operations, rules
from service.memory.deadlines import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from eventstore.recorded import NewEvent
    from service.memory.squad import Squad
    from service.memory.state import State

STEPS: tuple[Callable[[State, datetime], Iterable[NewEvent]], ...] = (
    rules.turn_of_day,
    operations.expired,
    budget.expired,
    agents.gone_quiet,
    keys.expired,
)
"""In this order, each looking at what the ones before did: an agent goes quiet after its work expired. What
each finds may be a great deal, and not all of it need be taken."""


def next_due(squad: Squad) -> datetime | None:
    """When time will next make something happen, if nothing else does before. It can be too soon."""
    return min(_deadlines(squad)) if squad.has_policy else None


def _deadlines(squad: Squad) -> Iterator[datetime]:
    if day := squad.day:
        yield day.ends_at
    yield from squad.spared_until.values()
    for heard_of, silence in zip(squad.longest_silent(), agents.allowed_silence(squad.policy), strict=True):
        if heard_of < NEVER:
            yield heard_of + silence
    for key in squad.all(KEYS):
        if key.expires_at:
            yield key.expires_at

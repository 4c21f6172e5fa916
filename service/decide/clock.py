"""Time-driven events, and when the next one is due.

They are decided at the beginning of a batch, so every command is decided on a state that is up to date; a
timer requests a batch when no command arrives.
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
    rules.day_reset_if_due,
    operations.expired,
    budget.expired,
    agents.inactive_agents,
    keys.expired,
)
"""In this order, as each sees what those before it did: an agent goes idle after its operations expired.
Each is an iterator, as it may find a great deal, and a batch may take only part of it."""


def next_due(squad: Squad) -> datetime | None:
    """Return when the next time-driven event is due if nothing else happens before, or an earlier time."""
    return min(_deadlines(squad)) if squad.has_policy else None


def _deadlines(squad: Squad) -> Iterator[datetime]:
    if day := squad.day:
        yield day.ends_at
    yield from squad.no_expiry_before.values()
    for heard_of, silence in zip(
        squad.resting_agents.longest_silent(), agents.allowed_silence(squad.policy), strict=True
    ):
        if heard_of < NEVER:
            yield heard_of + silence
    for key in squad.all(KEYS):
        if key.expires_at:
            yield key.expires_at

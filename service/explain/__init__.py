"""Explanations: why the event at any position of the log happened.

`explain` describes one event in plain sentences: what happened, why, where it came from, and what followed.
The same facts are given as data for programs.

It is pure: it reads events through `LogQueries` and knows nothing of the database. Every query uses an
index or a bounded range of the log, so an answer takes as long in a log of millions of events as in one
of hundreds.

To support a new event type, add a sentence in `sentences`, and in `narrators` either a narrator or an entry
among the types that need none. The type checker reports both until they are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.explain.narration import Narration
from service.explain.narrators import narrate
from service.explain.origin import origin
from service.explain.record import Explanation, LogQueries
from service.explain.sentences import sentence, step

if TYPE_CHECKING:
    from eventstore.recorded import Recorded

__all__ = ["MAX_CAUSES", "MAX_EFFECTS", "Explanation", "LogQueries", "explain"]

MAX_CAUSES = 25
"""The number of causes that are listed."""

MAX_EFFECTS = 10
"""The number of effects that are listed."""


async def explain(past: LogQueries, position: int) -> Explanation | None:
    """Explain the event at a position; return None if the log has no event there."""
    item = await past.event_at(position)
    if item is None:
        return None
    at: Recorded = item.at
    chain = (await past.causes(position, MAX_CAUSES + 1))[1:]
    effects = await past.effects(item, MAX_EFFECTS + 1)
    request = await past.of_request(item)
    narration = Narration()
    await narrate(item, request, past, narration)
    return Explanation(
        position=at.position,
        type=at.type,
        recorded_at=at.recorded_at,
        actor=at.actor,
        correlation_id=at.correlation_id,
        summary=sentence(item),
        reasons=tuple(narration.reasons),
        causes=tuple(step(cause) for cause in chain),
        causes_go_on_at=chain[-1].at.caused_by if chain else None,
        origin=await origin(item, chain[-1] if chain else None, request, past),
        outcome=tuple(narration.outcome),
        effects=tuple(step(effect) for effect in effects[:MAX_EFFECTS]),
        effects_go_on=len(effects) > MAX_EFFECTS,
        facts=narration.facts,
    )

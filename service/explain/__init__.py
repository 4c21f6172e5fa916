"""Why it happened: an answer for every position of the log.

`explain` looks at one event and tells, in sentences that a person understands, what happened, why, where it
came from, and what followed. What the sentences say is there for programs as well.

It is pure: it asks a `Past` for the events that it needs, and knows nothing of the database. Every question
is answered from an index or within a bounded stretch of the log, so an answer takes as long in a log of
millions of events as in one of hundreds.

To teach it a new kind of event: a sentence in `sentences`, and in `reasons` a narrator, or a place among
those that need none. Both are type errors until it is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.explain.origin import origin
from service.explain.reasons import narrate
from service.explain.record import Explanation, Past
from service.explain.sentences import sentence, step
from service.explain.telling import Telling

if TYPE_CHECKING:
    from eventstore.recorded import Recorded

__all__ = ["MOST_CAUSES", "MOST_EFFECTS", "Explanation", "Past", "explain"]

MOST_CAUSES = 25
"""How many steps of the chain of causes are told."""

MOST_EFFECTS = 10
"""How many of the events that it led to are told."""


async def explain(past: Past, position: int) -> Explanation | None:
    """Explains the event at a position; None where the log has none there."""
    item = await past.one(position)
    if item is None:
        return None
    at: Recorded = item.at
    chain = (await past.causes(position, MOST_CAUSES + 1))[1:]
    request = await past.of_request(item)
    telling = Telling()
    await narrate(item, request, past, telling)
    return Explanation(
        position=at.position,
        type=at.type,
        recorded_at=at.recorded_at,
        actor=at.actor,
        correlation_id=at.correlation_id,
        summary=sentence(item),
        reasons=tuple(telling.reasons),
        causes=tuple(step(cause) for cause in chain),
        causes_go_on_at=chain[-1].at.caused_by if chain else None,
        origin=await origin(item, chain[-1] if chain else None, request, past),
        outcome=tuple(telling.outcome),
        effects=tuple(step(effect) for effect in await past.effects(item, MOST_EFFECTS)),
        facts=telling.facts,
    )

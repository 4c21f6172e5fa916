"""The log in Postgres, through the few queries that are fast whatever its length.

Streams, types, agents and positions are indexed; causes and correlation ids are not, because every append
would pay for those indexes. The effects of an event are therefore searched for where they are likely: right
after the event, in its stream, among the next events of its agent, and among the next events of the type
that such an event mostly leads to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

from eventstore import lookup, sealing
from eventstore.events import (
    BudgetDayReset,
    JobDefined,
    JobPaused,
    OrchestratorStopped,
    PolicySet,
    RunSkipped,
    RunStarted,
    TokensDenied,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from eventstore.translation import translating
from service.explain.record import LoggedEvent, Share, Spending, Use, decode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

NEARBY_POSITIONS = 50
"""How many positions before and after an event are searched for the others of its request."""

MAX_SCANNED_EVENTS = 1_000
"""How many events are searched for effects: after the event, in its stream, of its agent, of one type."""

MAX_LISTED_USES = 10
"""The number of uses and of reservations that are listed."""

_CAUSES: LiteralString = """
WITH RECURSIVE chain (position, cause, step) AS (
    SELECT position, caused_by, 1 FROM events WHERE position = %(position)s
    UNION ALL
    SELECT e.position, e.caused_by, chain.step + 1
    FROM chain JOIN events e ON e.position = chain.cause
    WHERE chain.step < %(limit)s
)
SELECT position FROM chain ORDER BY step
"""

_EFFECTS: LiteralString = """
SELECT position FROM (
    (SELECT position, caused_by FROM events
     WHERE position > %(position)s ORDER BY position LIMIT %(looked_through)s)
    UNION
    (SELECT position, caused_by FROM events
     WHERE stream = %(stream)s AND version > %(version)s ORDER BY version LIMIT %(looked_through)s)
    UNION
    (SELECT position, caused_by FROM events
     WHERE agent = %(agent)s AND position > %(position)s ORDER BY position LIMIT %(looked_through)s)
    UNION
    (SELECT position, caused_by FROM events
     WHERE type = %(leads_to)s AND position > %(position)s ORDER BY position LIMIT %(looked_through)s)
) AS near
WHERE caused_by = %(position)s ORDER BY position LIMIT %(limit)s
"""

_LEADS_TO = {
    PolicySet.type: BudgetDayReset.type,
    BudgetDayReset.type: TokensDenied.type,
    JobDefined.type: RunStarted.type,
    JobPaused.type: RunSkipped.type,
    OrchestratorStopped.type: RunSkipped.type,
}
"""The type of an event's effects, where they are far from it and in streams of their own."""

_USES: LiteralString = """
WITH uses AS MATERIALIZED (
    SELECT position, agent, coalesce(data ->> 'tokens', data ->> 'tokens_used')::bigint AS tokens
    FROM events
    WHERE position > %(since)s AND position <= %(upto)s AND {agent}
      -- A settlement counts on the day of its reservation, which may be the previous one.
      AND (type = %(used)s OR (type = %(settled)s AND data ->> 'day' = %(day)s))
)
(SELECT position, agent, tokens, 0 FROM uses WHERE tokens > 0
 ORDER BY tokens DESC, position LIMIT %(largest)s)
UNION ALL
(SELECT 0, agent, sum(tokens)::bigint, count(*) FROM uses WHERE tokens > 0 GROUP BY agent)
"""

_HELD: LiteralString = """
WITH held AS MATERIALIZED (
    SELECT position, agent, (data ->> 'tokens')::bigint AS tokens
    FROM events made
    WHERE position > %(since)s AND position <= %(upto)s AND {agent} AND type = %(reserved)s
      AND NOT EXISTS (SELECT FROM events ended
                      WHERE ended.stream = made.stream AND ended.version > made.version
                        AND ended.position <= %(upto)s)
)
(SELECT position, agent, tokens, 0 FROM held ORDER BY tokens DESC, position LIMIT %(largest)s)
UNION ALL
(SELECT 0, agent, sum(tokens)::bigint, count(*) FROM held GROUP BY agent)
"""
"""Both queries return the largest entries first, then one row per agent, with position 0."""


class PostgresLogQueries:
    """A squad's log, read on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def event_at(self, position: int, /) -> LoggedEvent | None:
        """The event at a position."""
        recorded = await lookup.read_one(self._connection, position)
        return (await self._revealed([recorded]))[0] if recorded else None

    async def events_at(self, positions: Sequence[int], /) -> list[LoggedEvent]:
        """The events at these positions, in the order of the log."""
        return await self._revealed(await lookup.read_positions(self._connection, positions))

    async def causes(self, position: int, limit: int, /) -> list[LoggedEvent]:
        """The event at `position`, its cause, the cause of that and so on, at most `limit` events."""
        found = await self._positions(_CAUSES, {"position": position, "limit": limit})
        return (await self.events_at(found))[::-1]

    async def first(self, stream: str, types: Sequence[str] = (), *, after: int = 0) -> LoggedEvent | None:
        """The first event of these types (of any, by default) in a stream after the position `after`."""
        found = await lookup.read_stream(self._connection, stream, types, after=after, limit=1)
        return (await self._revealed(found))[0] if found else None

    async def last(self, stream: str, types: Sequence[str] = (), *, upto: int) -> LoggedEvent | None:
        """The last event of these types (of any, by default) in a stream up to the position `upto`."""
        found = await lookup.read_stream(
            self._connection, stream, types, upto=upto, limit=1, newest_first=True
        )
        return (await self._revealed(found))[0] if found else None

    async def earliest(
        self, stream: str, limit: int, types: Sequence[str] = (), *, after: int = 0
    ) -> list[LoggedEvent]:
        """The first events of these types in a stream after the position `after`, at most `limit`."""
        return await self._revealed(
            await lookup.read_stream(self._connection, stream, types, after=after, limit=limit)
        )

    async def last_of(self, type_: str, *, upto: int) -> LoggedEvent | None:
        """The last event of a type in the log up to the position `upto`."""
        query: LiteralString = (
            "SELECT position FROM events WHERE type = %(type)s AND position <= %(upto)s"
            " ORDER BY position DESC LIMIT 1"
        )
        found = await self._positions(query, {"type": type_, "upto": upto})
        return await self.event_at(found[0]) if found else None

    async def of_agent(self, agent: str, upto: int, limit: int) -> list[LoggedEvent]:
        """An agent's latest events up to the position `upto`, newest first."""
        query: LiteralString = (
            "SELECT position FROM events WHERE agent = %(agent)s AND position <= %(upto)s"
            " ORDER BY position DESC LIMIT %(limit)s"
        )
        found = await self._positions(query, {"agent": agent, "upto": upto, "limit": limit})
        return (await self.events_at(found))[::-1]

    async def before(self, moment: datetime) -> LoggedEvent | None:
        """The last event recorded before a moment."""
        query: LiteralString = "SELECT position_at(%(moment)s::timestamptz - interval '1 microsecond')"
        [position] = await self._positions(query, {"moment": moment})
        return await self.event_at(position)

    async def of_request(self, item: LoggedEvent) -> list[LoggedEvent]:
        """The events near this one with the same correlation id, this one included, in order."""
        query: LiteralString = (
            "SELECT position FROM events WHERE position BETWEEN %(first)s AND %(last)s"
            " AND correlation_id = %(correlation_id)s"
        )
        at = item.at
        near = {"first": at.position - NEARBY_POSITIONS, "last": at.position + NEARBY_POSITIONS}
        return await self.events_at(
            await self._positions(query, {**near, "correlation_id": at.correlation_id})
        )

    async def effects(self, item: LoggedEvent, limit: int) -> list[LoggedEvent]:
        """The first events that name this one as their cause, as far as bounded reads find them."""
        at = item.at
        found = await self._positions(
            _EFFECTS,
            {
                "position": at.position,
                "stream": at.stream,
                "version": at.version,
                "agent": getattr(item.event, "agent", None),
                "leads_to": _LEADS_TO.get(at.type),
                "looked_through": MAX_SCANNED_EVENTS,
                "limit": limit,
            },
        )
        return await self.events_at(found)

    async def spending(self, began: LoggedEvent, upto: int, agent: str | None) -> Spending:
        """What the budget was spent on from `began`, the start of the day that was open at `upto`."""
        assert isinstance(began.event, BudgetDayReset)
        parameters = {
            "day": began.event.day.isoformat(),
            "since": began.at.position,
            "upto": upto,
            "agent": agent,
            "largest": MAX_LISTED_USES,
            "used": TokensUsed.type,
            "settled": TokensSettled.type,
            "reserved": TokensReserved.type,
        }
        whose: LiteralString = "agent = %(agent)s" if agent is not None else "true"
        uses, used_by = await self._entries(_USES.replace("{agent}", whose), parameters)
        held, held_by = await self._entries(_HELD.replace("{agent}", whose), parameters)
        return Spending(uses, used_by, held, held_by)

    async def _entries(
        self, query: LiteralString, parameters: dict[str, Any]
    ) -> tuple[tuple[Use, ...], tuple[Share, ...]]:
        with translating():
            # Not prepared: the best plan depends on how many events lie between the two positions.
            cursor = await self._connection.execute(query, parameters, prepare=False)
            rows = await cursor.fetchall()
        uses = tuple(Use(position, agent, tokens) for position, agent, tokens, _ in rows if position)
        shares = (Share(agent, tokens, events) for _, agent, tokens, events in rows if events)
        return uses, tuple(sorted(shares, key=lambda share: (-share.tokens, share.agent)))

    async def _revealed(self, stored: Sequence[Recorded]) -> list[LoggedEvent]:
        """Decrypt and decode events; what was forgotten stays unreadable."""
        return [decode(recorded) for recorded in await sealing.reveal(self._connection, stored)]

    async def _positions(self, query: LiteralString, parameters: dict[str, Any]) -> list[int]:
        with translating():
            # Never prepared: a generic plan for all positions suits none of them.
            cursor = await self._connection.execute(query, parameters, prepare=False)
            return [row[0] for row in await cursor.fetchall()]

"""A `LogQueries` that is a list: every query scans all of it.

It is also the reference for the reader of the log in Postgres, which must give the same answers.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from eventstore.events import BudgetDayReset, TokensReleased, TokensReserved, TokensSettled, TokensUsed
from service.explain.reader import MAX_LISTED_USES
from service.explain.record import LoggedEvent, Share, Spending, Use, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from eventstore.recorded import Recorded


class ListLogQueries:
    """The log as a list."""

    def __init__(self, log: Sequence[Recorded]) -> None:
        self.log = [decode(recorded) for recorded in log]

    async def event_at(self, position: int, /) -> LoggedEvent | None:
        return self.log[position - 1] if 0 < position <= len(self.log) else None

    async def events_at(self, positions: Sequence[int], /) -> list[LoggedEvent]:
        return [item for item in self.log if item.at.position in positions]

    async def causes(self, position: int, limit: int, /) -> list[LoggedEvent]:
        chain: list[LoggedEvent] = []
        next_one: int | None = position
        while next_one and len(chain) < limit:
            chain.append(self.log[next_one - 1])
            next_one = chain[-1].at.caused_by
        return chain

    async def first(self, stream: str, types: Sequence[str] = (), *, after: int = 0) -> LoggedEvent | None:
        return next(iter(self._of(stream, types, after)), None)

    async def last(self, stream: str, types: Sequence[str] = (), *, upto: int) -> LoggedEvent | None:
        return next((item for item in self._of(stream, types)[::-1] if item.at.position <= upto), None)

    async def earliest(
        self, stream: str, limit: int, types: Sequence[str] = (), *, after: int = 0
    ) -> list[LoggedEvent]:
        return self._of(stream, types, after)[:limit]

    async def last_of(self, type_: str, *, upto: int) -> LoggedEvent | None:
        return next((item for item in self.log[upto - 1 :: -1] if item.at.type == type_), None)

    async def of_agent(self, agent: str, upto: int, limit: int) -> list[LoggedEvent]:
        return [item for item in self.log[upto - 1 :: -1] if agent in _agents(item)][:limit]

    async def before(self, moment: datetime) -> LoggedEvent | None:
        return next((item for item in self.log[::-1] if item.at.recorded_at < moment), None)

    async def of_request(self, item: LoggedEvent) -> list[LoggedEvent]:
        return [other for other in self.log if other.at.correlation_id == item.at.correlation_id]

    async def effects(self, item: LoggedEvent, limit: int) -> list[LoggedEvent]:
        return [other for other in self.log if other.at.caused_by == item.at.position][:limit]

    async def spending(self, began: LoggedEvent, upto: int, agent: str | None) -> Spending:
        assert isinstance(began.event, BudgetDayReset)
        day = began.event.day
        uses: list[Use] = []
        held: dict[str, Use] = {}
        for event, at in self.log[:upto]:
            match event:
                case TokensUsed() if event.day == day:
                    uses.append(Use(at.position, event.agent, event.tokens))
                case TokensReserved() if event.day == day:
                    held[event.reservation_id] = Use(at.position, event.agent, event.tokens)
                case TokensSettled() if held.pop(event.reservation_id, None):
                    uses.append(Use(at.position, event.agent, event.tokens_used))
                case TokensReleased():
                    held.pop(event.reservation_id, None)
                case _:
                    pass
        used, reserved = (_of_agent(each, agent) for each in (uses, held.values()))
        return Spending(_largest(used), _shares(used), _largest(reserved), _shares(reserved))

    def _of(self, stream: str, types: Sequence[str], after: int = 0) -> list[LoggedEvent]:
        mine = (item for item in self.log[after:] if item.at.stream == stream)
        return [item for item in mine if not types or item.at.type in types]


def _agents(item: LoggedEvent) -> set[str]:
    named = (getattr(item.event, name, None) for name in ("agent", "assigned_agent", "handled_by"))
    return {name for name in named if name}


def _of_agent(uses: Iterable[Use], agent: str | None) -> list[Use]:
    return [use for use in uses if use.tokens and agent in (None, use.agent)]


def _largest(uses: Iterable[Use]) -> tuple[Use, ...]:
    return tuple(sorted(uses, key=lambda use: (-use.tokens, use.position))[:MAX_LISTED_USES])


def _shares(uses: Iterable[Use]) -> tuple[Share, ...]:
    by_agent: defaultdict[str, list[int]] = defaultdict(list)
    for use in uses:
        by_agent[use.agent].append(use.tokens)
    shares = [Share(agent, sum(tokens), len(tokens)) for agent, tokens in by_agent.items()]
    return tuple(sorted(shares, key=lambda share: (-share.tokens, share.agent)))

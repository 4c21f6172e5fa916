"""Reads a log and judges it page by page, so that other work can run between pages."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from eventstore import codec, log, lookup
from eventstore.errors import LogNotUnderstood, UnknownEventType
from projections.projection import MissingRow
from service.history import snapshots
from service.whatif.simulation import KINDS, Simulation

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from eventstore.connection import Connection
    from service.whatif.report import Report
    from service.whatif.rules import OtherRules

_TYPES = [kind.type for kind in KINDS]
_JUST_BEFORE = timedelta(microseconds=1)


async def judge(
    connection: Callable[[], AbstractAsyncContextManager[Connection]],
    rules: OtherRules,
    *,
    page_positions: int = log.PAGE_EVENTS,
    at_page: Callable[[int, int], None] | None = None,
) -> Report:
    """Report what would have been different in the log as it is now. Nothing in it is changed.

    Args:
        connection: opens a connection for one page, such as a pool's `connection`.
        rules: the other rules.
        page_positions: how many positions are read at once, and judged without a pause.
        at_page: called before each page with the position reached and the last position.

    Raises:
        LogNotUnderstood: an event does not follow from those before.
        UnknownEventType: newer software wrote events that this one does not know.
        UnreadableEvent: an event cannot be read.
    """
    async with connection() as reading:
        # Event types of newer software may concern tokens or claims: better no answer than a wrong one.
        if unknown := set(await lookup.event_types(reading)) - codec.EVENT_TYPES.keys():
            raise UnknownEventType(", ".join(sorted(unknown)))
        upto = await log.head_position(reading)
        if rules.until:
            upto = min(upto, await lookup.position_at(reading, rules.until - _JUST_BEFORE))
        after = await lookup.position_at(reading, rules.since - _JUST_BEFORE) if rules.since else 0
        # Of the events before the other rules apply, only the resulting state matters.
        squad = await snapshots.nearest(reading, min(after, upto))
    simulation = Simulation(rules, min(after, upto), squad)
    for first in range(squad.head.position if squad else 0, upto, page_positions):
        if at_page:
            at_page(first, upto)
        async with connection() as reading:
            page = await lookup.read_types(reading, _TYPES, first, min(first + page_positions, upto))
        for recorded in page:
            event = codec.decode(recorded)
            try:
                simulation.process(event, recorded)
            except (MissingRow, LookupError) as fault:
                raise LogNotUnderstood(
                    f"at position {recorded.position}, {type(fault).__name__}: {fault}"
                ) from fault
    return simulation.end(upto)

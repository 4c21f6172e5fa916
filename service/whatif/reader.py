"""Reads a log page by page and has it judged, with other work in between."""

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
    """What would have been otherwise in the log as it is now. Nothing in it changes.

    Args:
        connection: opens a connection for one page, such as a pool's `connection`.
        rules: the other rules.
        page_positions: how many positions are read, and judged without a pause, at once.
        at_page: told before each page how far it is, and how far it goes.

    Raises:
        LogNotUnderstood: an event does not follow from those before.
        UnknownEventType: newer software wrote events that this one does not know.
        UnreadableEvent: an event cannot be read.
    """
    async with connection() as reading:
        # Whatever newer software records may be about tokens or claims: better no answer than a wrong one.
        if unknown := set(await lookup.kinds(reading)) - codec.EVENT_TYPES.keys():
            raise UnknownEventType(", ".join(sorted(unknown)))
        upto = await log.head_position(reading)
        if rules.until:
            upto = min(upto, await lookup.position_at(reading, rules.until - _JUST_BEFORE))
        after = await lookup.position_at(reading, rules.since - _JUST_BEFORE) if rules.since else 0
        # What was before the other rules hold is of interest only for what it led to.
        squad = await snapshots.nearest(reading, min(after, upto))
    simulation = Simulation(rules, min(after, upto), squad)
    for first in range(squad.head.position if squad else 0, upto, page_positions):
        if at_page:
            at_page(first, upto)
        async with connection() as reading:
            page = await lookup.read_kinds(reading, _TYPES, first, min(first + page_positions, upto))
        for recorded in page:
            event = codec.decode(recorded)
            try:
                simulation.take(event, recorded)
            except (MissingRow, LookupError) as fault:
                raise LogNotUnderstood(
                    f"at position {recorded.position}, {type(fault).__name__}: {fault}"
                ) from fault
    return simulation.end(upto)

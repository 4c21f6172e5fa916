"""Asks for a batch when time alone makes something happen: an expiry, a new day, an agent gone quiet.

Every process has one. Whoever is first appends what is due; the others then find nothing left to do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from service.commands import PassTime
from service.decide.clock import next_due
from service.decide.day import budget_day
from service.requests import NoOutcome, Request
from service.writing.batch import CLOCK_ACTOR, CLOCK_STEP, new_id

if TYPE_CHECKING:
    from service.clock import DatabaseClock
    from service.memory.squad import Squad
    from service.writing.writer import Writer

_TOLD_FROM_SECONDS = 5.0
"""What is less may be a clock that is being put right little by little."""

_log = logging.getLogger(__name__)


async def keep_time(writer: Writer, clock: DatabaseClock) -> None:
    """Runs until cancelled."""
    told_of: tuple[int, str] | None = None
    stood_still = False
    while True:
        await asyncio.sleep(CLOCK_STEP.total_seconds())
        if not writer.ready:
            continue
        told_of = _check_rules(writer.squad, clock, told_of)
        stood_still = _check_clock(writer.squad, clock, stood_still=stood_still)
        due = next_due(writer.squad)
        if due is None or due > clock.now():
            continue
        try:
            await writer.submit(Request(PassTime(), CLOCK_ACTOR, new_id()))
        except NoOutcome as error:
            _log.warning("time could not be kept for the moment: %s", type(error).__name__)


def standstill_seconds(squad: Squad, clock: DatabaseClock) -> float:
    """How long time stands still in the squad: until the database's clock is where the log was already."""
    last = squad.head.recorded_at
    return max(0.0, (last - clock.now()).total_seconds()) if last else 0.0


def _check_clock(squad: Squad, clock: DatabaseClock, *, stood_still: bool) -> bool:
    """Says so, once, where time stands still, and when it goes on; gives whether it stands still."""
    seconds = standstill_seconds(squad, clock)
    if seconds > _TOLD_FROM_SECONDS and not stood_still:
        _log.warning(
            "time stands still for %.0f s: the database's clock was set back. Until it has caught up with"
            " the log nothing expires, no budget day ends and no job ticks",
            seconds,
        )
        return True
    if not seconds and stood_still:
        _log.info("time goes on")
        return False
    return stood_still


def _check_rules(
    squad: Squad, clock: DatabaseClock, told_of: tuple[int, str] | None
) -> tuple[int, str] | None:
    """Says so, once of each rule, where this process cannot tell when a day begins; gives the rule."""
    if not squad.has_policy:
        return told_of
    rule = squad.policy.reset_hour, squad.policy.timezone
    if rule != told_of:
        try:
            budget_day(*rule, clock.now())
        except ValueError as error:
            _log.error("budget days go on by 24 hours: %s", error)
    return rule

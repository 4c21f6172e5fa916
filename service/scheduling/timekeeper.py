"""Request a batch when the passing of time alone causes an event: an expiry, a new day, an idle agent.

Every process has one. The first appends what is due; the others then find nothing left to do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from service.commands import PassTime
from service.decide.clock import next_due
from service.decide.day import budget_day
from service.requests import NoOutcome, Request, Stopping
from service.writing.batch import CLOCK_ACTOR, CLOCK_STEP, new_id

if TYPE_CHECKING:
    from service.clock import DatabaseClock
    from service.memory.squad import Squad
    from service.writing.writer import Writer

_REPORTED_FROM_SECONDS = 5.0
"""A shorter standstill may be a clock that is being slewed."""

_log = logging.getLogger(__name__)


async def watch_time(writer: Writer, clock: DatabaseClock) -> None:
    """Watch the time until cancelled."""
    reported: tuple[int, str] | None = None
    stood_still = False
    while True:
        await asyncio.sleep(CLOCK_STEP.total_seconds())
        if not writer.ready:
            continue
        reported = _check_rules(writer.squad, clock, reported)
        stood_still = _check_clock(writer.squad, clock, stood_still=stood_still)
        due = next_due(writer.squad)
        if due is None or due > clock.now():
            continue
        try:
            await writer.submit(Request(PassTime(), CLOCK_ACTOR, new_id()))
        except Stopping:
            # Nothing is wrong: whoever starts next finds all that is due.
            continue
        except NoOutcome as error:
            _log.warning("what is due could not be recorded for now: %s", type(error).__name__)


def standstill_seconds(squad: Squad, clock: DatabaseClock) -> float:
    """Return how long the squad's time stands still, until the database's clock catches up with the log."""
    last = squad.head.recorded_at
    return max(0.0, (last - clock.now()).total_seconds()) if last else 0.0


def _check_clock(squad: Squad, clock: DatabaseClock, *, stood_still: bool) -> bool:
    """Log once when time comes to a standstill and once when it resumes; return whether it stands still."""
    seconds = standstill_seconds(squad, clock)
    if seconds > _REPORTED_FROM_SECONDS and not stood_still:
        _log.warning(
            "time stands still for %.0f s: the database's clock was set back. Until it has caught up with"
            " the log, nothing expires, no budget day ends and no job ticks",
            seconds,
        )
        return True
    if not seconds and stood_still:
        _log.info("time has resumed")
        return False
    return stood_still


def _check_rules(
    squad: Squad, clock: DatabaseClock, reported: tuple[int, str] | None
) -> tuple[int, str] | None:
    """Log once per reset rule if this process cannot tell when its days begin; return the rule."""
    if not squad.has_policy:
        return reported
    rule = squad.policy.reset_hour, squad.policy.timezone
    if rule != reported:
        try:
            budget_day(*rule, clock.now())
        except ValueError as error:
            _log.error("budget days last 24 hours until this is fixed: %s", error)
    return rule

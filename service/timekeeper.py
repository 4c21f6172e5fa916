"""Asks for a batch when time alone makes something happen: an expiry, a new day, an agent gone quiet.

Every process has one. Whoever is first appends what is due; the others then find nothing left to do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from service.batch import CLOCK_ACTOR, CLOCK_STEP, new_id
from service.commands import PassTime
from service.decide.clock import next_due
from service.requests import CommandFailed, OutcomeUnknown, QueueFull, Request, Stopping, Unavailable

if TYPE_CHECKING:
    from service.clock import DatabaseClock
    from service.writer import Writer

_log = logging.getLogger(__name__)


async def keep_time(writer: Writer, clock: DatabaseClock) -> None:
    """Runs until cancelled."""
    while True:
        await asyncio.sleep(CLOCK_STEP.total_seconds())
        if not writer.ready:
            continue
        due = next_due(writer.squad)
        if due is None or due > clock.now():
            continue
        try:
            await writer.submit(Request(PassTime(), CLOCK_ACTOR, new_id()))
        except (QueueFull, Stopping, Unavailable, OutcomeUnknown, CommandFailed) as error:
            _log.warning("time could not be kept for the moment: %s", type(error).__name__)

"""A squad after an outage: its log ends some time ago."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from eventstore import log
from service.memory.draft import Draft
from service.memory.squad import Squad
from service.requests import Request, Ticket
from service.writing.batch import decide_batch
from tests.support.components import connected

if TYPE_CHECKING:
    from service.commands import AnyCommand

AWAY = timedelta(minutes=10)


async def record_before_outage(dsn: str, *commands: AnyCommand, away: timedelta = AWAY) -> datetime:
    """Record these commands as the last ones before an outage; return when they were recorded."""
    async with connected(dsn) as connection:
        now = await log.clock(connection)
        loop = asyncio.get_running_loop()
        tickets = [Ticket(Request(item, "agent:test", "test"), loop.create_future()) for item in commands]
        batch = decide_batch(Draft(Squad()), tickets, {}, now=now - away, decided_at=now - away)
        assert all(not isinstance(outcome, Exception) for _, outcome in batch.outcomes)
        await log.append(connection, batch.recorded, now)
    return now - away

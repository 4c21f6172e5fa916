"""The ear: one connection that LISTENs, and says when there may be something new.

A notification is a hint. It can be lost, late or doubled without harm, because whoever is woken reads the
log by position, and looks by itself every `POLL_SECONDS` even when nothing was heard. What the listener
adds is speed, and honesty about its own health: a heartbeat makes the round trip through the server and
back as a notification, so a connection that is open but deaf (half-open TCP, a pooler in transaction mode,
a stopped backend) is found out and replaced. Through a pooler it is sent on a connection of its own: in
transaction mode what one sends to oneself may come back, and still nothing is heard from others.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from contextlib import suppress
from time import monotonic
from uuid import uuid4

import psycopg

from eventstore import pooler
from eventstore.connection import Connection, connect, hanging_up_after
from eventstore.describing import describe
from eventstore.errors import EventStoreError

POLL_SECONDS = 1.0
"""How long a reader waits for a hint before it looks by itself."""

HEARTBEAT_SECONDS = 3.0
"""How often the listener sends a notification to itself."""

DEAF_AFTER_SECONDS = 3.0
"""How long that notification may take."""

GATHER_SECONDS = (0.003, 0.006)
"""After something was heard, what comes next is left to gather for so long: each time costs a tenth of a
millisecond, and where several processes write, they would be deaf to everything else. The second is the
longest, where each time something is there already."""

_BACKOFF_SECONDS = (0.05, 5.0)
"""The first wait before connecting again, and the longest."""

_IDLE_MILLISECONDS = 15_000
# Nobody waits for a disk or a standby to keep it. One that waited for a standby which is away would stay in
# the server after its connection was given up, and so would the next one.
_SAY = "SELECT pg_notify(%s, %s), set_config('synchronous_commit', 'off', true)"
_POSITION = re.compile(r"[0-9]{1,18}")
_log = logging.getLogger(__name__)


class Hints:
    """Wakes everyone who waits for news of one kind, and keeps the newest position that was hinted at."""

    def __init__(self) -> None:
        self.position = 0
        self._next = asyncio.Event()
        self._also: list[asyncio.Event] = []

    def ticket(self) -> asyncio.Event:
        """Take it before looking; wait on it after: what arrives in between is not missed."""
        return self._next

    def wake(self, position: int = 0) -> None:
        """Wakes all holders of tickets."""
        self.position = max(self.position, position)
        current, self._next = self._next, asyncio.Event()
        current.set()
        for event in self._also:
            event.set()

    def forget(self) -> None:
        """What was hinted at is no position of this log."""
        self.position = 0

    def also_wake(self, event: asyncio.Event) -> None:
        """Sets `event` at every hint, for one who also waits for other things on it and clears it."""
        self._also.append(event)


async def wait_for_hint(ticket: asyncio.Event, seconds: float = POLL_SECONDS) -> None:
    """Returns when the ticket's hint comes, and after `seconds` in any case."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ticket.wait()


class Listener:
    """Listens for one squad until cancelled; reconnects by itself.

    `events` wakes when the log may have grown, `projections` when the read tables may have. Both wake at
    every reconnect, because what was said in between was not heard.
    """

    def __init__(self, dsn: str, schema: str) -> None:
        self.events = Hints()
        self.projections = Hints()
        self.hearing = False
        self.problem: str | None = None
        """Why nothing is heard, where that is so."""
        self.heartbeats = 0
        self.reconnects = 0
        self._dsn = dsn
        self._schema = schema
        self._heartbeat_channel = f"{schema}.heard.{uuid4().hex[:12]}"

    async def run(self) -> None:
        """Runs until cancelled."""
        delay = _BACKOFF_SECONDS[0]
        while True:
            started = monotonic()
            try:
                await self._listen()
            except (EventStoreError, psycopg.Error, OSError) as error:
                _log.warning("listener lost its connection: %s", describe(error))
                self.problem = str(error)
            self.hearing = False
            self.reconnects += 1
            if monotonic() - started > 2 * HEARTBEAT_SECONDS:
                delay = _BACKOFF_SECONDS[0]
            # Jitter, so that many processes do not come back in step.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

    async def _listen(self) -> None:
        connection = await self._connect("squad listener")
        speaking = connection
        try:
            if pooler.stands_between(connection):
                speaking = await self._connect("squad heartbeat")
            with hanging_up_after(DEAF_AFTER_SECONDS, connection):
                for channel in (
                    f"{self._schema}.events",
                    f"{self._schema}.projections",
                    self._heartbeat_channel,
                ):
                    await connection.execute(
                        psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel))
                    )
            self.events.wake()
            self.projections.wake()
            while True:
                await self._prove_hearing(connection, speaking)
                self.hearing, self.problem = True, None
                await self._hear(connection, seconds=HEARTBEAT_SECONDS)
        finally:
            self.hearing = False
            for opened in {connection, speaking}:
                opened.pgconn.finish()

    async def _connect(self, name: str) -> Connection:
        return await connect(
            self._dsn,
            self._schema,
            name=name,
            # Notifications pile up in the server for a process that stands still.
            idle_session_timeout=_IDLE_MILLISECONDS,
        )

    async def _prove_hearing(self, connection: Connection, speaking: Connection) -> None:
        token = uuid4().hex
        with hanging_up_after(DEAF_AFTER_SECONDS, speaking):
            await speaking.execute(_SAY, (self._heartbeat_channel, token))
        if not await self._hear(connection, seconds=DEAF_AFTER_SECONDS, until=token):
            between = ": a pooler stands between" if pooler.stands_between(connection) else ""
            raise EventStoreError(f"the listener's own heartbeat did not come back{between}")
        self.heartbeats += 1

    async def _hear(self, connection: Connection, *, seconds: float, until: str | None = None) -> bool:
        """Passes on what is heard, for `seconds` or until the heartbeat `until` arrives."""
        shortest, longest = GATHER_SECONDS
        gather = shortest
        asked = monotonic()
        deadline = asked + seconds
        came_back = False
        while not came_back and (left := deadline - asked) > 0:
            # Always heard to its end: what is left in an abandoned iterator would be lost.
            async for notification in connection.notifies(timeout=left, stop_after=1):
                if notification.channel == self._heartbeat_channel:
                    came_back = came_back or notification.payload == until
                else:
                    hints = self.events if notification.channel.endswith(".events") else self.projections
                    hints.wake(_position(notification.payload))
            if not came_back:
                was_there = monotonic() - asked < shortest
                gather = min(2 * gather, longest) if was_there else shortest
                await asyncio.sleep(gather)
            asked = monotonic()
        return came_back


def _position(payload: str) -> int:
    """The position that a notification names; 0 where it names none, for anybody may notify."""
    return int(payload) if _POSITION.fullmatch(payload) else 0

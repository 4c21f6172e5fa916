"""One connection that LISTENs, and wakes readers when there may be something new.

A notification is a hint. It can be lost, late or duplicated without harm, because a reader that is woken
reads the log by position, and polls every `POLL_SECONDS` even without notifications. The listener adds
speed, and knows its own health: a heartbeat makes the round trip through the server and back as a
notification, so a connection that is open but deaf (half-open TCP, a pooler in transaction mode, a stopped
backend) is detected and replaced. Through a pooler the heartbeat is sent on a second connection: in
transaction mode, a notification to oneself may arrive while those of others do not.
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
from eventstore.connection import Connection, closing_after, connect
from eventstore.errors import EventStoreError
from eventstore.outage import OutageLog
from eventstore.redaction import describe

POLL_SECONDS = 1.0
"""How long a reader waits for a hint before it polls."""

HEARTBEAT_SECONDS = 3.0
"""How often the listener sends a notification to itself."""

HEARTBEAT_TIMEOUT_SECONDS = 3.0
"""How long that notification may take."""

COALESCE_SECONDS = (0.003, 0.006)
"""How long to let notifications gather after one was received: each wakeup costs a tenth of a millisecond,
and where several processes write, there would be time for little else. The second is the maximum, reached
while notifications keep arriving."""

_BACKOFF_SECONDS = (0.05, 5.0)
"""The first and the longest wait before reconnecting."""

_IDLE_MILLISECONDS = 15_000
# A heartbeat need not be durable. If it waited for a standby that is down, its server process would outlive
# the abandoned connection, and so would that of the next heartbeat.
_NOTIFY = "SELECT pg_notify(%s, %s), set_config('synchronous_commit', 'off', true)"
_POSITION = re.compile(r"[0-9]{1,18}")
_log = logging.getLogger(__name__)


class Hints:
    """Wakes all that wait for one kind of change, and keeps the highest position hinted at."""

    def __init__(self) -> None:
        self.position = 0
        self._next = asyncio.Event()
        self._also: list[asyncio.Event] = []

    def waiter(self) -> asyncio.Event:
        """Return an event to wait on. Take it before looking, so that no hint in between is missed."""
        return self._next

    def wake(self, position: int = 0) -> None:
        """Set all events that `waiter` returned since the last call."""
        self.position = max(self.position, position)
        current, self._next = self._next, asyncio.Event()
        current.set()
        for event in self._also:
            event.set()

    def reset(self) -> None:
        """Forget the highest position: it was not one of this log."""
        self.position = 0

    def set_on_wake(self, event: asyncio.Event) -> None:
        """Set `event` at every hint too, for a waiter that also uses it for other things and clears it."""
        self._also.append(event)


async def wait_for_hint(waiter: asyncio.Event, seconds: float = POLL_SECONDS) -> None:
    """Wait for the hint that sets `waiter`, for at most `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await waiter.wait()


class Listener:
    """Listens for one squad until cancelled; reconnects by itself.

    `events` wakes when the log may have grown, `projections` when the read tables may have changed. Both
    wake at every reconnect, because notifications were missed in between.
    """

    def __init__(self, dsn: str, schema: str) -> None:
        self.events = Hints()
        self.projections = Hints()
        self.hearing = False
        self.problem: str | None = None
        """Why the listener is not hearing, if it is not."""
        self.heartbeats = 0
        self.reconnects = 0
        self._dsn = dsn
        self._schema = schema
        self._outages = OutageLog(_log, "the listener")
        self._heartbeat_channel = f"{schema}.heard.{uuid4().hex[:12]}"

    async def run(self) -> None:
        """Run until cancelled."""
        delay = _BACKOFF_SECONDS[0]
        while True:
            started = monotonic()
            try:
                await self._listen()
            except (EventStoreError, psycopg.Error, OSError) as error:
                self._outages.failed(describe(error))
                self.problem = str(error)
            self.hearing = False
            self.reconnects += 1
            if monotonic() - started > 2 * HEARTBEAT_SECONDS:
                delay = _BACKOFF_SECONDS[0]
            # Jitter, so that many processes do not reconnect at the same time.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

    async def _listen(self) -> None:
        connection = await self._connect("squad listener")
        sender = connection
        try:
            if pooler.is_pooled(connection):
                sender = await self._connect("squad heartbeat")
            with closing_after(HEARTBEAT_TIMEOUT_SECONDS, connection):
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
                await self._check_heartbeat(connection, sender)
                self.hearing, self.problem = True, None
                self._outages.connected()
                await self._receive(connection, seconds=HEARTBEAT_SECONDS)
        finally:
            self.hearing = False
            for opened in {connection, sender}:
                opened.pgconn.finish()

    async def _connect(self, name: str) -> Connection:
        return await connect(
            self._dsn,
            self._schema,
            name=name,
            # The server queues notifications for a process that is suspended.
            idle_session_timeout=_IDLE_MILLISECONDS,
        )

    async def _check_heartbeat(self, connection: Connection, sender: Connection) -> None:
        token = uuid4().hex
        with closing_after(HEARTBEAT_TIMEOUT_SECONDS, sender):
            await sender.execute(_NOTIFY, (self._heartbeat_channel, token))
        if not await self._receive(connection, seconds=HEARTBEAT_TIMEOUT_SECONDS, until=token):
            reason = ": the connection goes through a pooler" if pooler.is_pooled(connection) else ""
            raise EventStoreError(f"the listener's own heartbeat did not come back{reason}")
        self.heartbeats += 1

    async def _receive(self, connection: Connection, *, seconds: float, until: str | None = None) -> bool:
        """Pass on notifications for `seconds`, or until the heartbeat `until` arrives."""
        min_delay, max_delay = COALESCE_SECONDS
        delay = min_delay
        started_at = monotonic()
        deadline = started_at + seconds
        is_received = False
        while not is_received and (left := deadline - started_at) > 0:
            # Always exhausted: what an abandoned iterator still holds would be lost.
            async for notification in connection.notifies(timeout=left, stop_after=1):
                if notification.channel == self._heartbeat_channel:
                    is_received = is_received or notification.payload == until
                else:
                    hints = self.events if notification.channel.endswith(".events") else self.projections
                    hints.wake(_position(notification.payload))
            if not is_received:
                is_busy = monotonic() - started_at < min_delay
                delay = min(2 * delay, max_delay) if is_busy else min_delay
                await asyncio.sleep(delay)
            started_at = monotonic()
        return is_received


def _position(payload: str) -> int:
    """Return the position in a payload, or 0 if there is none: anybody may send notifications."""
    return int(payload) if _POSITION.fullmatch(payload) else 0

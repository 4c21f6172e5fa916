"""Read the tables once they cover what the reader must see.

The tables lag the log by a few milliseconds. A reader that names a position waits until it is covered. One
that does not waits briefly for what this process had acknowledged when the request arrived, so that "write,
then read" shows the write; if the projector lags further behind, the answer is stale.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests

from eventstore import log
from eventstore.errors import StoreBusy, StoreUnavailable
from eventstore.listener import wait_for_hint
from eventstore.translation import translated
from projections.agents import AGENTS
from projections.messages import messages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from psycopg_pool import AsyncConnectionPool

    from eventstore.connection import Connection
    from eventstore.listener import Hints
    from projections.projection import Projection
    from projections.projector import Projector
    from service.writing.writer import Writer

STRICT_WAIT_SECONDS = 5.0
"""How long a reader waits for the position that it named."""

HEAD_TIMEOUT_SECONDS = 0.5
"""Timeout for reading the log's head after that."""

POLITE_WAIT_SECONDS = 0.5
"""How long a reader that named no position waits for what this process had acknowledged."""

MAX_REMEMBERED_MESSAGES = 32
"""How many messages that stay in an inbox are remembered per agent (`Inbox.left`)."""

SHARED_RESULT_SECONDS = 0.25
"""How long the result of a query is shared by all that wait, unless a hint arrives."""

T = TypeVar("T")


class PositionNotReached(Exception):
    """The position that a reader named was not covered in time."""

    def __init__(self, covered: int, ends_at: int | None = None) -> None:
        super().__init__(f"covered up to {covered}")
        self.covered = covered
        self.ends_at = ends_at
        """Where the log ends, if that is before the position."""


class Inbox(NamedTuple):
    """What is known about an agent's inbox, so that it need not be scanned from the beginning."""

    agent: str
    table_at: int
    """The table's current position, or a slightly older one."""
    seen_up_to: int = 0
    """All messages to the agent up to this position are acknowledged, except those in `left`."""
    left: tuple[int, ...] = ()
    """Positions of messages that the last scan still found; some may be acknowledged by now."""


class SharedQuery(Generic[T]):
    """A query whose result, or failure, is shared by all that wait for the same."""

    def __init__(self, query: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._query = query
        self._waiter: asyncio.Event | None = None
        self._started_at = 0.0
        self._result: asyncio.Task[T] | None = None

    async def __call__(self, waiter: asyncio.Event) -> T:
        """Return the last result; query again if that belongs to another waiter or is too old."""
        result = self._result
        old = monotonic() - self._started_at >= SHARED_RESULT_SECONDS
        if result is None or waiter is not self._waiter or (result.done() and old):
            self._waiter, self._started_at = waiter, monotonic()
            result = self._result = asyncio.create_task(self._query())
            result.add_done_callback(_consume_exception)
        # A waiter that gives up must not cancel it for the others.
        return await asyncio.shield(result)

    def discard(self) -> None:
        """Discard the last result."""
        self._result = None


def _consume_exception(query: asyncio.Task[Any]) -> None:
    """Mark a failure as handled, even if no one waits for it any more: the next waiter queries again."""
    if not query.cancelled():
        query.exception()


class ReadTables:
    """The read tables of one squad, and their positions."""

    def __init__(
        self, pool: AsyncConnectionPool[Connection], hints: Hints, projector: Projector, writer: Writer
    ) -> None:
        self.positions: dict[str, int] = {}
        self._pool = pool
        self._hints = hints
        self._projector = projector
        self._writer = writer
        self._stuck: dict[str, int] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._stopping = False
        self._query_positions = SharedQuery(self._positions)
        self._query_head = SharedQuery(self._head)

    def release_waiters(self) -> None:
        """Wake all waiting readers, and let none wait from now on: the service stops."""
        self._stopping = True
        self._hints.wake()
        self._projector.advanced.wake()
        self._writer.advanced.wake()

    def reset(self) -> None:
        """Discard what is known, after the log and the tables were replaced."""
        self.positions.clear()
        self._stuck.clear()
        self._inboxes.clear()
        self._query_positions.discard()
        self._query_head.discard()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Yield a connection to read on.

        Raises:
            StoreUnavailable: the database cannot be reached, or all connections are busy for too long.
        """
        try:
            async with self._pool.connection() as connection:
                yield connection
        except (PoolTimeout, TooManyRequests) as error:
            raise StoreUnavailable("no connection to read on") from error
        except psycopg.Error as error:
            raise translated(error) from error

    @asynccontextmanager
    async def covering(self, projection: Projection, min_position: int | None) -> AsyncIterator[Connection]:
        """Yield a connection that sees the projection's tables at `min_position` or later.

        Raises:
            PositionNotReached: they are not there after `STRICT_WAIT_SECONDS`.
            StoreUnavailable: the database cannot be reached.
        """
        await self.cover(projection, min_position)
        async with self.connection() as connection:
            yield connection

    async def cover(self, projection: Projection, min_position: int | None) -> None:
        """Wait until the projection's tables are at `min_position`; only briefly if there is none.

        Raises:
            PositionNotReached: they are not there after `STRICT_WAIT_SECONDS`.
            StoreUnavailable: the database cannot be reached.
        """
        if min_position is None:
            await self._wait_briefly(projection.name)
            return
        reached = await self._wait(projection.name, min_position, STRICT_WAIT_SECONDS)
        if reached < min_position:
            raise await self._not_reached(reached, min_position)

    async def reach(self, projection: Projection, position: int, seconds: float) -> bool:
        """Wait for at most `seconds` until the projection's tables are at a position; return whether so.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        return await self._wait(projection.name, position, seconds) >= position

    async def wait_for_state(self, min_position: int | None) -> None:
        """Wait until the state in memory is at `min_position` or later.

        Raises:
            PositionNotReached: it is not after `STRICT_WAIT_SECONDS`.
        """
        deadline = monotonic() + STRICT_WAIT_SECONDS
        while min_position is not None and (at := self._writer.squad.head.position) < min_position:
            left = deadline - monotonic()
            if left <= 0 or self._stopping:
                raise await self._not_reached(at, min_position)
            waiter = self._writer.advanced.waiter()
            if self._writer.squad.head.position < min_position:
                await wait_for_hint(waiter, left)

    def inbox(self, agent: str) -> Inbox:
        """Return what is known about an agent's inbox."""
        table_at = self._known(messages.name)
        known = self._inboxes.get(agent)
        return known._replace(table_at=table_at) if known else Inbox(agent, table_at)

    def record_scan(self, inbox: Inbox, after: int, upto: int | None, found: Sequence[int]) -> None:
        """Record what a scan found in an inbox.

        Args:
            inbox: what was known before.
            after: where the scan began. If that leaves a gap after what was known, nothing is recorded.
            upto: where it ended; None if it reached the end.
            found: the positions of the messages that it found.
        """
        # Any name can be asked for, even one that is no agent's; those must not fill the memory.
        if after > inbox.seen_up_to or not self._writer.squad.rows(AGENTS).get(inbox.agent):
            return
        left = (*(position for position in inbox.left if position <= after), *found)
        seen_up_to = inbox.table_at if upto is None else upto
        if len(left) > MAX_REMEMBERED_MESSAGES:
            seen_up_to, left = left[MAX_REMEMBERED_MESSAGES] - 1, left[:MAX_REMEMBERED_MESSAGES]
        known = self._inboxes.get(inbox.agent)
        if known is None or seen_up_to >= known.seen_up_to:
            self._inboxes[inbox.agent] = inbox._replace(seen_up_to=seen_up_to, left=left)

    async def _not_reached(self, covered: int, position: int) -> PositionNotReached:
        """Return the error; it says where the log ends if that is before the position."""
        if not self._stopping:
            with suppress(StoreUnavailable, StoreBusy, TimeoutError):
                async with asyncio.timeout(HEAD_TIMEOUT_SECONDS):
                    ends_at = await self._query_head(self._writer.advanced.waiter())
                if ends_at < position:
                    return PositionNotReached(covered, ends_at)
        return PositionNotReached(covered)

    async def _wait_briefly(self, name: str) -> None:
        head = self._writer.squad.head.position
        # A projection that did not advance during a whole wait is stuck; do not wait for it until it does.
        if self._known(name) >= head or self._stuck.get(name) == self._known(name):
            return
        reached = await self._wait(name, head, POLITE_WAIT_SECONDS)
        if reached < head:
            self._stuck[name] = reached

    async def _wait(self, name: str, position: int, seconds: float) -> int:
        deadline = monotonic() + seconds
        while True:
            advanced = self._projector.advanced if self._projector.active else self._hints
            waiter = advanced.waiter()
            reached = self._known(name)
            if reached < position and not self._projector.active:
                self.positions = await self._query_positions(waiter)
                reached = self._known(name)
            left = deadline - monotonic()
            if reached >= position or left <= 0 or self._stopping:
                return reached
            await wait_for_hint(waiter, min(left, SHARED_RESULT_SECONDS))

    async def _positions(self) -> dict[str, int]:
        """Return the position of each projection, as recorded in the database."""
        async with self.connection() as connection:
            cursor = await connection.execute("SELECT name, position FROM projections")
            return dict(await cursor.fetchall())

    async def _head(self) -> int:
        async with self.connection() as connection:
            return await log.head_position(connection)

    def _known(self, name: str) -> int:
        positions = self._projector.positions if self._projector.active else self.positions
        return positions.get(name, 0)

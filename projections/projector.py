"""Runs the projections over the log: read a page, fold it, write rows and position in one transaction.

One of several processes is the active projector, by a session lock on the connection that writes: a process
that loses the connection also loses the lock. The others stand by. Positions are compared as they are
advanced, so even two projectors that both believe themselves active cannot write the same page twice.

A projection that cannot fold an event stops there, records it in its row of `projections`, and does not
affect the others. It never skips an event. It retries after a while, when another process becomes the
projector, and after a replay: the cause may be gone. One whose rebuild failed retries only in the last two
cases, as that folds the whole log.

Events that this process has just appended, or folded to decide, are not read again
(`projections.recent_events`).

A replay (`projections.rebuild`) may replace rows and positions at any time; the generation shows it. Tables
that were folded by other code are rebuilt in the same way when this process becomes the projector
(`projections.background_rebuild`).
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic, thread_time
from typing import TYPE_CHECKING

import psycopg

from eventstore import log
from eventstore.connection import Connection, closing_after, connect
from eventstore.errors import EventStoreError, LogNotUnderstood, StoreBusy, StoreUnavailable
from eventstore.listener import POLL_SECONDS, Hints, wait_for_hint
from eventstore.outage import OutageLog
from eventstore.page_size import PageSizer
from eventstore.queries import one_value
from eventstore.redaction import describe
from eventstore.translation import translating
from projections import PROJECTIONS
from projections.background_rebuild import BackgroundRebuild
from projections.folding import PageFolder
from projections.progress import read_progress
from projections.recent_events import RecentEvents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.events import AnyEvent
    from eventstore.keys import Keyring
    from eventstore.recorded import Recorded
    from projections.projection import Projection

COALESCE_SECONDS = 0.001
"""How long to gather events after a hint: one transaction per event would slow everything down."""

MAX_PAUSE_SECONDS = 0.02
"""The longest pause after a page, to let the next one grow: a page alone costs as much as 100 events.

The pause is as long as this thread was busy during the page: short in an idle process, so that rows are
readable sooner, and as long as the page itself in a busy one, whose writers can use that time."""

STUCK_AFTER_SECONDS = 30.0
"""Timeout of a round trip; its connection is then cut."""

RETRY_FAILED_SECONDS = 10.0
"""How long a projection that could not fold an event waits before it retries."""

_IDLE_MILLISECONDS = 15_000
_TRY_LOCK = "SELECT pg_try_advisory_lock('projections'::regclass::oid::integer, 2)"
_BACKOFF_SECONDS = (0.2, 5.0)
_STOPPED = """
    UPDATE projections SET failed_position = %s, error = %s, updated_at = clock_timestamp()
    WHERE name = %s AND (%s::bigint IS NULL OR position = %s)
"""
_REPLACED = "SELECT max(generation) <> %s FROM projections"
_log = logging.getLogger(__name__)


class Projector:
    """Keeps the read tables of one squad until cancelled."""

    def __init__(
        self,
        dsn: str,
        schema: str,
        hints: Hints,
        projections: Sequence[Projection] = PROJECTIONS,
        keyring: Keyring | None = None,
    ) -> None:
        self.active = False
        """Whether it writes the tables, and `positions` are theirs."""
        self.positions: dict[str, int] = {}
        """The position of each projection; 0 while it is being rebuilt."""
        self.failed: dict[str, tuple[int, str]] = {}
        self.poll_rescues = 0
        """How often polling found events that no notification had announced."""
        self.caught_up_at: dict[str, float] = {}
        """When each projection last had everything in the log, by the monotonic clock."""
        self.advanced = Hints()
        """Wakes when `positions` has advanced. The database's own notification may arrive before that."""
        self._outages = OutageLog(_log, "the projector")
        self._dsn = dsn
        self._schema = schema
        self._hints = hints
        self._failed_at = 0.0
        self._projections = {projection.name: projection for projection in projections}
        self._keyring = keyring
        self._generation = 0
        self._folder = PageFolder(keyring=keyring)
        self._page_sizer = PageSizer(log.PAGE_EVENTS)
        self._recent = RecentEvents()
        self._wakeup = asyncio.Event()
        """Set when there may be something to fold, by a notification or by this process."""
        self._rebuild = BackgroundRebuild(dsn, schema)

    def observe(self, recorded: Sequence[Recorded], events: Sequence[AnyEvent]) -> None:
        """Keep events that this process already knows, so that they need not be read."""
        if self.active:
            # If they are too many to be kept, they will have to be read.
            self._page_sizer.shrink_to_fit(recorded)
            self._recent.extend(recorded, events)
            self._wakeup.set()

    def reset(self) -> None:
        """Start over from the tables: the log was replaced, and they with it."""
        self.active = False
        self._wakeup.set()

    async def run(self) -> None:
        """Run until cancelled."""
        self._hints.set_on_wake(self._wakeup)
        try:
            await self._run()
        finally:
            await self._rebuild.stop()

    async def _run(self) -> None:
        delay = _BACKOFF_SECONDS[0]
        while True:
            try:
                connection = await connect(
                    self._dsn,
                    self._schema,
                    name="squad projector",
                    # The active one polls every second; one that hangs must not keep the lock.
                    idle_session_timeout=_IDLE_MILLISECONDS,
                )
                self._outages.connected()
                try:
                    await self._become_active(connection)
                    delay = _BACKOFF_SECONDS[0]
                    await self._follow(connection)
                finally:
                    self.active = False
                    connection.pgconn.finish()
            except StoreBusy as busy:
                _log.info("the projector starts over: %s", busy)
            except (EventStoreError, psycopg.Error, OSError) as error:
                self._outages.failed(describe(error))
            except Exception:  # noqa: BLE001 - nothing restarts this task: it must go on
                _log.exception("the projector failed and starts over")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

    async def _become_active(self, connection: Connection) -> None:
        """Wait for the lock by polling: a session that blocks on it would hold back vacuum."""
        while True:
            with closing_after(STUCK_AFTER_SECONDS, connection):
                if await one_value(connection, _TRY_LOCK):
                    break
            await asyncio.sleep(POLL_SECONDS / 2)
        await self._restart(connection)

    async def _restart(self, connection: Connection) -> None:
        """Start from the tables as they are now, and rebuild those that must be."""
        found = await read_progress(connection, self._projections.values())
        self.failed.clear()
        self.positions, self._generation = found.positions, found.generation
        self.caught_up_at = dict.fromkeys(self.positions, monotonic())
        self._folder = PageFolder(self._generation, self._keyring)
        self._recent.clear()
        await self._rebuild.start(found.outdated)
        self.active = True
        self.advanced.wake(max(self.positions.values(), default=0))

    async def _follow(self, connection: Connection) -> None:
        polled = False
        while True:
            was_polled, polled = polled, False
            self._wakeup.clear()
            with closing_after(STUCK_AFTER_SECONDS, connection):
                if not self.active:
                    await self._restart(connection)
                await self._check_rebuild(connection)
                try:
                    was_fresh = await self._advance_from_memory(connection)
                    advanced = was_fresh or await self._advance_from_log(connection)
                except StoreBusy:
                    if not await self._restart_if_replaced(connection):
                        raise
                    continue
                if advanced:
                    self.poll_rescues += was_polled and not self._wakeup.is_set()
                    # A notification can arrive before its events do, and a page read from the log is seldom
                    # the last. Only if all announced events were kept in memory is there nothing to read.
                    if not was_fresh or self._hints.position > min(self.positions.values()):
                        continue
                elif await self._restart_if_replaced(connection):
                    continue
            if not self._wakeup.is_set():
                await wait_for_hint(self._wakeup)
                polled = not self._wakeup.is_set()
                await asyncio.sleep(COALESCE_SECONDS)

    async def _restart_if_replaced(self, connection: Connection) -> bool:
        """Start over if a replay has replaced the rows of the tables."""
        if await one_value(connection, _REPLACED, (self._generation,), prepare=True):
            _log.info("the read tables were rebuilt; continuing from there")
            await self._restart(connection)
            return True
        return False

    async def _check_rebuild(self, connection: Connection) -> None:
        with translating():
            failures = await self._rebuild.poll(connection)
        for name, error in failures.items():
            position = getattr(error, "position", None) or 0
            await self._fail(connection, self._projections[name], position, error)

    async def _advance_from_memory(self, connection: Connection) -> bool:
        """Fold what this process already knows, if all projections are right before it."""
        if self._rebuild or self.failed or not self._recent:
            return False
        asked, busy, hinted = monotonic(), thread_time(), self._hints.position
        behind = min(self.positions.values())
        if behind != max(self.positions.values()) or not (page := self._recent.take_after(behind)):
            return False
        members = list(self._projections.values())
        try:
            await self._fold_and_write(connection, members, page.recorded, page.events)
        except (StoreUnavailable, StoreBusy, psycopg.OperationalError):
            raise
        except Exception:  # noqa: BLE001 - what cannot be folded is handled when read from the log
            return False
        if page.recorded[-1].position >= hinted:
            self.caught_up_at.update(dict.fromkeys(self.positions, asked))
        await asyncio.sleep(min(thread_time() - busy, MAX_PAUSE_SECONDS))
        return True

    async def _advance_from_log(self, connection: Connection) -> bool:
        """Fold one page for the projections furthest behind; return False if all are at the head."""
        is_patient = monotonic() - self._failed_at < RETRY_FAILED_SECONDS
        absent = {projection.name for projection in self._rebuild.projections} | (
            self.failed.keys() if is_patient else set()
        )
        healthy = {name: at for name, at in self.positions.items() if name not in absent}
        if not healthy:
            return False
        behind = min(healthy.values())
        members = [self._projections[name] for name, at in healthy.items() if at == behind]
        asked, busy = monotonic(), thread_time()
        limit = self._page_sizer.events
        page = await log.read_after(connection, behind, limit)
        is_last = len(page) < limit
        self._page_sizer.adapt(page)
        # Never beyond the position of the next ones, so that they continue from there as one group.
        stop = min((at for at in healthy.values() if at > behind), default=None)
        if stop is not None:
            page = [recorded for recorded in page if recorded.position <= stop]
        if page:
            await self._advance(connection, members, page)
        if page and is_last:
            await asyncio.sleep(min(thread_time() - busy, MAX_PAUSE_SECONDS))
        if is_last and stop is None:
            end = page[-1].position if page else behind
            self.caught_up_at.update(
                (one.name, asked) for one in members if self.positions[one.name] == end
            )
        return bool(page)

    async def _advance(
        self, connection: Connection, members: Sequence[Projection], page: Sequence[Recorded]
    ) -> None:
        """Fold a page; if that fails, bisect to find which projection fails at which event."""
        try:
            await self._fold_and_write(connection, members, page)
        except (StoreUnavailable, StoreBusy, psycopg.OperationalError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises stops its projection, loudly
            if len(members) > 1:
                for member in members:
                    await self._advance(connection, [member], page)
            elif len(page) > 1:
                half = len(page) // 2
                await self._advance(connection, members, page[:half])
                if members[0].name not in self.failed:
                    await self._advance(connection, members, page[half:])
            else:
                await self._fail(connection, members[0], page[0].position, error)

    async def _fold_and_write(
        self,
        connection: Connection,
        members: Sequence[Projection],
        page: Sequence[Recorded],
        events: Sequence[AnyEvent] | None = None,
    ) -> None:
        await self._folder.advance(connection, members, page, events)
        after = page[-1].position
        self.positions.update(dict.fromkeys((member.name for member in members), after))
        if recovered := [member.name for member in members if self.failed.pop(member.name, None)]:
            _log.warning(
                "projections that had stopped are following the log again: %s", ", ".join(recovered)
            )
            await connection.execute(
                "UPDATE projections SET failed_position = NULL, error = NULL WHERE name = ANY(%s)",
                (recovered,),
            )
        self.advanced.wake(after)

    async def _fail(
        self, connection: Connection, projection: Projection, position: int, error: Exception
    ) -> None:
        # The handler's own error; the position is recorded next to it.
        fault = error.__cause__ if isinstance(error, LogNotUnderstood) and error.__cause__ else error
        reason = f"{type(fault).__name__}: {fault}"
        # A projector that was overtaken has folded the event into rows of another position.
        here = None if projection in self._rebuild.projections else self.positions[projection.name]
        cursor = await connection.execute(_STOPPED, (position, reason, projection.name, here, here))
        if not cursor.rowcount:
            raise StoreBusy(f"{projection.name} is no longer at position {here}")
        _log.error(
            "projection %s stopped at position %d: %s; see its row in the table projections",
            projection.name,
            position,
            describe(fault),
        )
        self.failed[projection.name] = (position, reason)
        self._failed_at = monotonic()
        # Retry with an empty cache, in case a cached row was at fault.
        self._folder = PageFolder(self._generation, self._keyring)

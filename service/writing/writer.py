"""The writer: one task that turns waiting commands into events, a batch at a time.

A batch is decided in memory at the head of the log and appended in one round trip, provided that the log
still ends there: one lock, one fsync and one notification for all its commands
(`service.writing.appender`). The writer owns the queue and the connection, and sees that every caller gets
an answer.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from eventstore.connection import Connection, connect
from eventstore.errors import LogNotUnderstood, LogReplaced, NotConnected, StoreBusy, StoreUnavailable
from eventstore.keys import Keyring
from eventstore.listener import POLL_SECONDS, Hints, wait_for_hint
from eventstore.outage import OutageLog
from eventstore.redaction import describe
from service.requests import Outcome, OutcomeUnknown, QueueFull, Request, Stopping, Ticket
from service.writing import splitting
from service.writing.appender import Appender
from service.writing.command_queue import CommandQueue
from service.writing.sealer import Sealing
from service.writing.stats import WriterStats
from service.writing.timeouts import Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.clock import DatabaseClock
    from service.memory.squad import Squad
    from service.writing.pipeline import Decided

SUBMIT_TIMEOUT_SECONDS = 20.0
"""How long a caller waits for the outcome."""

STALLED_AFTER_SECONDS = 3.0
"""How long commands may wait without progress before that counts as a problem."""

_BACKOFF_SECONDS = (0.05, 2.0)
_log = logging.getLogger(__name__)


class Writer:
    """Decides and appends for one squad, until cancelled."""

    def __init__(
        self,
        dsn: str,
        schema: str,
        clock: DatabaseClock,
        hints: Hints,
        *,
        keyring: Keyring | None = None,
        encrypt: bool = False,
    ) -> None:
        self.ready = False
        self.problem: str | None = None
        """Why no command can be decided; None if they can."""
        self.advanced = Hints()
        """Wakes when `squad` has advanced."""
        self.observers: list[Callable[[Sequence[Recorded]], None]] = []
        """Called with all events after they were committed, in order. They must not raise."""
        self.on_known: list[Callable[[Sequence[Recorded], Sequence[AnyEvent]], None]] = []
        """Called before `observers` with events that were committed here or folded in order to decide, and
        with their decoded form; not with what other processes sealed."""
        self.on_replaced: list[Callable[[], None]] = []
        """Called when the log turned out to be another one, once `squad` reflects it. Must not raise."""
        self.encrypts = encrypt
        """Whether personal data is sealed in what this process appends."""
        self.replacements = 0
        """How often that happened."""
        self.queue = CommandQueue()
        self.stats = WriterStats()
        self._outages = OutageLog(_log, "the writer")
        self._dsn = dsn
        self._schema = schema
        self._hints = hints
        self._hint_seen = 0
        """The latest hint after which the log was read."""
        self._log_read_at = self._clock_read_at = 0.0
        """When the log, and the database's clock, were last read."""
        self._appender = Appender(
            clock,
            self.queue,
            self._publish,
            Sealing(keyring or Keyring(), encrypt=encrypt),
            self._on_log_replaced,
            self.stats,
        )
        self._current: list[Ticket] = []
        self._answered = 0
        """How many commands were in the last batch."""
        self._stopping = False
        self._last_progress_at = 0.0
        """When the last batch was committed, or the first command after an idle time arrived."""
        self._timeouts = Timeouts(self.queue, self._in_flight)

    @property
    def squad(self) -> Squad:
        """The state that readers may read."""
        return self._appender.squad

    @property
    def contended(self) -> bool:
        """Whether another process writes to the same log, which costs a second round trip a batch."""
        return self._appender.contended

    @property
    def is_stalled(self) -> bool:
        """Whether commands wait without progress, such as when another session holds the log's lock."""
        waited = monotonic() - self._last_progress_at
        return self._is_busy and waited > STALLED_AFTER_SECONDS

    @property
    def _is_busy(self) -> bool:
        appender = self._appender
        return bool(self._current or self.queue or appender.in_doubt or appender.pipeline.tickets)

    async def submit(self, request: Request, timeout_seconds: float = SUBMIT_TIMEOUT_SECONDS) -> Outcome:
        """Queue a command, and return its outcome once it is durable.

        Raises:
            QueueFull: too many commands are waiting.
            Stopping: the service accepts no more commands.
            Unavailable: the database was unavailable for too long; nothing was carried out.
            OutcomeUnknown: the connection broke during the commit; it may or may not have happened.
            CommandFailed: an internal error; nothing was carried out.
        """
        return await self.put(request, timeout_seconds)

    def put(
        self, request: Request, timeout_seconds: float = SUBMIT_TIMEOUT_SECONDS
    ) -> asyncio.Future[Outcome]:
        """Queue a command.

        Returns:
            A future of what `submit` returns or raises.
        """
        return self.put_all((request,), timeout_seconds)[0]

    def put_all(
        self, requests: Iterable[Request], timeout_seconds: float = SUBMIT_TIMEOUT_SECONDS
    ) -> list[asyncio.Future[Outcome]]:
        """Queue commands next to each other, with no others between them. See `put`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        tell, put = self.stats.command, self.queue.put
        if not self._is_busy:
            self._last_progress_at = monotonic()
        outcomes = []
        for request in requests:
            ticket = Ticket(request, loop.create_future(), deadline, tell)
            outcomes.append(ticket.outcome)
            if self._stopping:
                ticket.fail(Stopping())
                continue
            try:
                put(ticket)
            except QueueFull as error:
                ticket.fail(error)
        self.queue.notify()
        self._timeouts.watch()
        return outcomes

    async def run(self) -> None:
        """Run until cancelled; reconnect as needed."""
        self._hints.set_on_wake(self.queue.arrived)
        try:
            await self._run()
        finally:
            self.fail_waiting()

    async def drain(self) -> None:
        """Accept no more commands, and return when those that wait are answered."""
        self._stopping = True
        while self._is_busy:
            await wait_for_hint(self.advanced.waiter(), 0.05)

    def fail_waiting(self) -> None:
        """Fail all tickets that still wait for an answer."""
        for ticket in self._in_flight():
            ticket.fail(OutcomeUnknown())
        while queue := self.queue.drain():
            for ticket in queue:
                ticket.fail(Stopping())

    async def _run(self) -> None:
        delay = _BACKOFF_SECONDS[0]
        while True:
            began, grown = monotonic(), delay
            try:
                connection = await connect(self._dsn, self._schema, name="squad writer")
                try:
                    self.queue.requeue(await self._appender.begin(connection))
                    self.problem, self.ready = None, True
                    self._outages.connected()
                    self.advanced.wake(self.squad.head.position)
                    delay = _BACKOFF_SECONDS[0]
                    await self._work(connection)
                finally:
                    self.ready = False
                    connection.pgconn.finish()
            except LogReplaced as error:
                _log.error("%s", error)
                self.problem = str(error)
            except (StoreUnavailable, StoreBusy, OSError) as error:
                self._outages.failed(str(error))
                is_specific = isinstance(error, StoreBusy | NotConnected)
                self.problem = str(error) if is_specific else "the database cannot be reached"
                if isinstance(error, StoreBusy) and self._last_progress_at < began:
                    # When a disk is full, connecting succeeds, and every commit fails at once.
                    delay = grown
            except Exception as error:  # noqa: BLE001 - callers depend on this task: it must go on
                _log.error("commands cannot be decided: %s", describe(error))
                self.problem = str(error)
                delay = _BACKOFF_SECONDS[1]
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

    async def _work(self, connection: Connection) -> None:
        self._log_read_at = self._clock_read_at = monotonic()
        while True:
            if not self.queue and not self._appender.pipeline.tickets:
                await self._wait_for_work()
            self.queue.arrived.clear()
            await self._catch_up(connection)
            await self._wait_for_joiners()
            if decided := self._appender.pipeline.take():
                await self._commit_all(connection, list(decided.batch.tickets), decided)
            elif tickets := self.queue.drain(self._appender.batch_size(len(self.queue))):
                await self._commit_all(connection, tickets)

    async def _catch_up(self, connection: Connection) -> None:
        """Read the clock and the log: periodically, and when other processes may have written."""
        now, hinted, keeper = monotonic(), self._hints.position, self._appender.keeper
        if now - self._clock_read_at > POLL_SECONDS:
            # Our clock may have stopped, as on a laptop that slept, and readers rely on it too.
            await keeper.renew_clock(connection)
            self._clock_read_at = now
        # A hint counts once: whatever it announced, the log has been read since.
        is_news = hinted > self._hint_seen and hinted > self.squad.head.position
        # A batch decided under the lock reads what is new anyway. Only `catch_up` loads what other
        # processes reopened; it runs once a second in any case.
        if self._appender.contended and self.queue:
            is_news = False
        if is_news or now - self._log_read_at > POLL_SECONDS:
            self._appender.pipeline.discard()
            known = self.squad.head.position
            await keeper.catch_up(connection)
            self._hint_seen, self._log_read_at = hinted, now
            if self.squad.head.position > max(known, self._hints.position):
                self.stats.poll_rescues += 1

    async def _wait_for_work(self) -> None:
        """Wait for a command or a hint, at most until the next poll is due."""
        arrived = self.queue.arrived
        timer = asyncio.get_running_loop().call_later(POLL_SECONDS, arrived.set)
        try:
            await arrived.wait()
        finally:
            timer.cancel()

    async def _wait_for_joiners(self) -> None:
        """If appends are slow, wait briefly for callers who were just answered to ask again.

        They share the commit of what was decided ahead, instead of waiting for it and then for their own.
        """
        pipeline = self._appender.pipeline
        callers = self._answered + len(pipeline.tickets)
        if not pipeline.tickets or not (seconds := self._appender.batch_sizer.linger_seconds(callers)):
            return
        deadline = monotonic() + seconds
        while len(self.queue) + len(pipeline.tickets) < callers and (left := deadline - monotonic()) > 0:
            self.queue.arrived.clear()
            await wait_for_hint(self.queue.arrived, left)
        pipeline.join()

    async def _commit_all(
        self, connection: Connection, tickets: list[Ticket], decided: Decided | None = None
    ) -> None:
        """Commit the tickets together; if that fails, bisect down to the command at fault."""
        self._current, self._answered = [*tickets], len(tickets)
        # What was decided ahead contains no command that needs a batch of its own.
        parts = [tickets] if decided else splitting.split_batches(tickets)
        try:
            while parts:
                part = parts.pop()
                try:
                    await self._appender.commit(
                        connection,
                        part,
                        decided if part is tickets else None,
                        join=partial(self._join, part, parts),
                        defer=parts.append,
                    )
                    self._last_progress_at = monotonic()
                except (StoreUnavailable, StoreBusy, LogNotUnderstood, asyncio.CancelledError):
                    if not self._appender.in_doubt:
                        parts.append(part)
                    raise
                except Exception as error:  # noqa: BLE001 - no caller may wait for ever
                    parts += splitting.bisect(part, error)
        finally:
            for part in parts:
                self.queue.requeue(part)
            self._current = []

    def _join(self, part: list[Ticket], parts: list[list[Ticket]]) -> None:
        """Add to the part the commands that arrived while it waited for the lock."""
        if parts:
            # Tickets queued together stay together.
            return
        more = splitting.take_joiners(part, self.queue)
        part += more
        self._current += more
        self._answered += len(more)

    def _publish(self, recorded: Sequence[Recorded], events: Sequence[AnyEvent]) -> None:
        if events:
            for take in self.on_known:
                take(recorded, events)
        for observe in self.observers:
            try:
                observe(recorded)
            except Exception:  # noqa: BLE001 - the events are committed, whatever happens to an observer
                _log.exception("an observer of the log failed")
        self.advanced.wake(self.squad.head.position)

    def _on_log_replaced(self) -> None:
        """Reset the hints: the log is another one, and may be shorter, so they do not apply to it."""
        self.replacements += 1
        self._hints.reset()
        self._hint_seen = 0
        for tell in self.on_replaced:
            tell()
        self.advanced.wake()

    def _in_flight(self) -> Sequence[Ticket]:
        """Return the tickets whose commands may be in the log already."""
        in_doubt = self._appender.in_doubt
        return (*self._current, *(in_doubt.tickets if in_doubt else ()), *self._appender.pipeline.tickets)

"""The writer: one task that turns waiting commands into events, a batch at a time.

A batch is decided in memory at the head of the log and appended in one round trip, on condition that the
log still ends there: one lock, one fsync and one notification for all its commands
(`service.writing.appender`). The writer keeps the queue, the connection, and everybody's right to an
answer.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from eventstore.connection import Connection, connect
from eventstore.describing import describe
from eventstore.errors import LogNotUnderstood, LogReplaced, NotConnected, StoreBusy, StoreUnavailable
from eventstore.keys import Keyring
from eventstore.listener import POLL_SECONDS, Hints, wait_for_hint
from service.requests import Outcome, OutcomeUnknown, QueueFull, Request, Stopping, Ticket
from service.writing import parting
from service.writing.appender import Appender
from service.writing.measures import Measures
from service.writing.patience import Patience
from service.writing.sealer import Sealing
from service.writing.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.clock import DatabaseClock
    from service.memory.squad import Squad
    from service.writing.ahead import Decided

PATIENCE_SECONDS = 20.0
"""How long a caller waits for its outcome."""

HELD_UP_AFTER_SECONDS = 3.0
"""How long commands may wait while none is decided before that counts as a problem."""

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
        """Why no command can be decided, where that is so."""
        self.moved = Hints()
        """Wakes when `squad` has moved on."""
        self.observers: list[Callable[[Sequence[Recorded]], None]] = []
        """Told about every event after it was committed, in order. They must not raise."""
        self.on_known: list[Callable[[Sequence[Recorded], Sequence[AnyEvent]], None]] = []
        """Told about what was committed here, or folded to decide, and what those events tell, before
        `observers` are; not of what others have sealed."""
        self.on_replaced: list[Callable[[], None]] = []
        """Told when the log proved to be another one, once `squad` holds what is in it; must not raise."""
        self.replacements = 0
        """How often it did."""
        self.waiting = Waiting()
        self.measures = Measures()
        """What was counted and measured."""
        self._dsn = dsn
        self._schema = schema
        self._hints = hints
        self._hint_seen = 0
        """The latest hint that was followed by a look at the log."""
        self._looked_at = self._asked_at = 0.0
        """When the log was last looked at, and the database asked for the time."""
        self._appender = Appender(
            clock,
            self.waiting,
            self._publish,
            Sealing(keyring or Keyring(), encrypt=encrypt),
            self._start_afresh,
            self.measures,
        )
        self._current: list[Ticket] = []
        self._answered = 0
        """How many commands were in the last batch."""
        self._stopping = False
        self._moved_at = 0.0
        """When the last batch was carried out, or the first command since came."""
        self._patience = Patience(self.waiting, self._under_way)

    @property
    def squad(self) -> Squad:
        """The state that readers may read."""
        return self._appender.squad

    @property
    def contended(self) -> bool:
        """Whether another process writes to the same log, which costs a second round trip a batch."""
        return self._appender.contended

    @property
    def held_up(self) -> bool:
        """Whether commands wait and none gets through, as where somebody else keeps the log's lock."""
        waited = monotonic() - self._moved_at
        return self._busy and waited > HELD_UP_AFTER_SECONDS

    @property
    def _busy(self) -> bool:
        appender = self._appender
        return bool(self._current or self.waiting or appender.in_doubt or appender.ahead.tickets)

    async def submit(self, request: Request, patience_seconds: float = PATIENCE_SECONDS) -> Outcome:
        """Has a command decided; returns once what came of it is durable.

        Raises:
            QueueFull: too many are waiting.
            Stopping: the service takes no more commands.
            Unavailable: the database was away for too long; nothing was carried out.
            OutcomeUnknown: the database went away in the commit; it may or may not have happened.
            CommandFailed: a fault of ours; nothing was carried out.
        """
        return await self.put(request, patience_seconds)

    def put(self, request: Request, patience_seconds: float = PATIENCE_SECONDS) -> asyncio.Future[Outcome]:
        """Puts a command behind all that wait.

        Returns:
            What `submit` returns or raises, once that is known.
        """
        return self.put_all((request,), patience_seconds)[0]

    def put_all(
        self, requests: Iterable[Request], patience_seconds: float = PATIENCE_SECONDS
    ) -> list[asyncio.Future[Outcome]]:
        """Puts commands behind all that wait, with nobody else's between them. See `put`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_seconds
        tell, put = self.measures.command, self.waiting.put
        if not self._busy:
            self._moved_at = monotonic()
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
        self.waiting.tell()
        self._patience.watch()
        return outcomes

    async def run(self) -> None:
        """Runs until cancelled; reconnects by itself."""
        self._hints.also_wake(self.waiting.arrived)
        try:
            await self._run()
        finally:
            self.give_up()

    async def drain(self) -> None:
        """Takes no more commands; returns when those that wait are answered."""
        self._stopping = True
        while self._busy:
            await wait_for_hint(self.moved.ticket(), 0.05)

    def give_up(self) -> None:
        """Waits for nothing any more: whoever still waits for an answer is told that there is none."""
        for ticket in self._under_way():
            ticket.fail(OutcomeUnknown())
        while waiting := self.waiting.drain():
            for ticket in waiting:
                ticket.fail(Stopping())

    async def _run(self) -> None:
        delay = _BACKOFF_SECONDS[0]
        while True:
            began, grown = monotonic(), delay
            try:
                connection = await connect(self._dsn, self._schema, name="squad writer")
                try:
                    self.waiting.put_back(await self._appender.begin(connection))
                    self.problem, self.ready = None, True
                    self.moved.wake(self.squad.head.position)
                    delay = _BACKOFF_SECONDS[0]
                    await self._work(connection)
                finally:
                    self.ready = False
                    connection.pgconn.finish()
            except LogReplaced as error:
                _log.error("%s", error)
                self.problem = str(error)
            except (StoreUnavailable, StoreBusy, OSError) as error:
                _log.warning("writer lost its connection: %s", error)
                is_told = isinstance(error, StoreBusy | NotConnected)
                self.problem = str(error) if is_told else "the database cannot be reached"
                if isinstance(error, StoreBusy) and self._moved_at < began:
                    # Where a disk is full, connections can be had, and each commit on them fails at once.
                    delay = grown
            except Exception as error:  # noqa: BLE001 - callers wait for this task: it goes on, whatever comes
                _log.error("commands cannot be decided: %s", describe(error))
                self.problem = str(error)
                delay = _BACKOFF_SECONDS[1]
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

    async def _work(self, connection: Connection) -> None:
        self._looked_at = self._asked_at = monotonic()
        while True:
            if not self.waiting and not self._appender.ahead.tickets:
                await self._something_to_do()
            self.waiting.arrived.clear()
            await self._keep_up(connection)
            await self._let_others_join()
            if decided := self._appender.ahead.take():
                await self._carry_out(connection, list(decided.batch.tickets), decided)
            elif tickets := self.waiting.drain(self._appender.enough(len(self.waiting))):
                await self._carry_out(connection, tickets)

    async def _keep_up(self, connection: Connection) -> None:
        """Asks for the time, and looks at the log: now and then, and where others may have written."""
        now, hinted, keeper = monotonic(), self._hints.position, self._appender.keeper
        if now - self._asked_at > POLL_SECONDS:
            # Ours may have stood still, as on a laptop that slept, and readers go by it as well.
            await keeper.renew_clock(connection)
            self._asked_at = now
        # A hint counts once: whatever was said, the log has been looked at since.
        is_news = hinted > self._hint_seen and hinted > self.squad.head.position
        # A batch that is decided holding the lock reads what is new there. A look alone brings back into
        # memory what others opened again; there is one each second in any case.
        if self._appender.contended and self.waiting:
            is_news = False
        if is_news or now - self._looked_at > POLL_SECONDS:
            self._appender.ahead.drop()
            known = self.squad.head.position
            await keeper.look(connection)
            self._hint_seen, self._looked_at = hinted, now
            if self.squad.head.position > max(known, self._hints.position):
                self.measures.poll_rescues += 1

    async def _something_to_do(self) -> None:
        """Waits for a command or a hint, and not longer than until it is time to look anyway."""
        arrived = self.waiting.arrived
        timer = asyncio.get_running_loop().call_later(POLL_SECONDS, arrived.set)
        try:
            await arrived.wait()
        finally:
            timer.cancel()

    async def _let_others_join(self) -> None:
        """Where appending takes long, waits a moment for callers who were just answered to ask again.

        They share the commit of what was decided ahead, instead of waiting for it and then for their own.
        """
        ahead = self._appender.ahead
        callers = self._answered + len(ahead.tickets)
        if not ahead.tickets or not (seconds := self._appender.pace.rest_seconds(callers)):
            return
        deadline = monotonic() + seconds
        while len(self.waiting) + len(ahead.tickets) < callers and (left := deadline - monotonic()) > 0:
            self.waiting.arrived.clear()
            await wait_for_hint(self.waiting.arrived, left)
        ahead.join()

    async def _carry_out(
        self, connection: Connection, tickets: list[Ticket], decided: Decided | None = None
    ) -> None:
        """Commits the tickets together; where they cannot be, by halves, down to the one at fault."""
        self._current, self._answered = [*tickets], len(tickets)
        # What was decided ahead has no command that must stand apart.
        parts = [tickets] if decided else parting.apart(tickets)
        try:
            while parts:
                part = parts.pop()
                try:
                    await self._appender.commit(
                        connection,
                        part,
                        decided if part is tickets else None,
                        join=partial(self._join, part, parts),
                        leave=parts.append,
                    )
                    self._moved_at = monotonic()
                except (StoreUnavailable, StoreBusy, LogNotUnderstood, asyncio.CancelledError):
                    if not self._appender.in_doubt:
                        parts.append(part)
                    raise
                except Exception as error:  # noqa: BLE001 - nobody waits for ever, whatever went wrong
                    parts += parting.halves(part, error)
        finally:
            for part in parts:
                self.waiting.put_back(part)
            self._current = []

    def _join(self, part: list[Ticket], parts: list[list[Ticket]]) -> None:
        """Lets those go along who came while this part waited for its turn among several processes."""
        if parts:
            # Nobody gets between those that came together.
            return
        more = parting.companions(part, self.waiting)
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
            except Exception:  # noqa: BLE001 - the events are in the log, whatever an observer makes of them
                _log.exception("an observer of the log failed")
        self.moved.wake(self.squad.head.position)

    def _start_afresh(self) -> None:
        """The log is another one, and may be shorter: what was hinted at says nothing of it."""
        self.replacements += 1
        self._hints.forget()
        self._hint_seen = 0
        for tell in self.on_replaced:
            tell()
        self.moved.wake()

    def _under_way(self) -> Sequence[Ticket]:
        """Those whose commands may be in the log already."""
        in_doubt = self._appender.in_doubt
        return (*self._current, *(in_doubt.tickets if in_doubt else ()), *self._appender.ahead.tickets)

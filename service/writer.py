"""The writer: one task that turns waiting commands into events, a batch at a time.

A batch is decided in memory at the head of the log and appended in one round trip, on condition that the
log still ends there: one lock, one fsync and one notification for all its commands. Where another process
was faster, the batch is decided again while holding the log's lock, so it always gets through.

When the connection breaks in a commit, nobody knows whether it happened. The batch is then in doubt: the
next connection asks the log for the events' ids, under the lock, before anything else is decided.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from eventstore import log
from eventstore.connection import Connection, connect, hanging_up_after
from eventstore.errors import (
    ClockDrifted,
    EventStoreError,
    HeadMoved,
    StoreBusy,
    StoreUnavailable,
    UnknownEventType,
    UnreadableEvent,
)
from eventstore.listener import POLL_SECONDS, Hints, wait_for_hint
from service import recall
from service.batch import Batch, decide_batch
from service.requests import (
    CommandFailed,
    Outcome,
    OutcomeUnknown,
    Request,
    Stopping,
    Ticket,
    Unavailable,
    Waiting,
)
from service.restore import catch_up, fold_page, restore
from service.squad import Draft, Squad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventstore.recorded import Recorded
    from service.clock import DatabaseClock

STUCK_AFTER_SECONDS = 10.0
"""A round trip that takes longer is given up, and its connection cut."""

PATIENCE_SECONDS = 20.0
"""How long a caller waits for its outcome."""

_BACKOFF_SECONDS = (0.05, 2.0)
_log = logging.getLogger(__name__)


class InDoubt(NamedTuple):
    """A batch whose commit may or may not have happened."""

    batch: Batch
    draft: Draft


class Writer:
    """Decides and appends for one squad, until cancelled. `squad` is the state that readers may read."""

    def __init__(self, dsn: str, schema: str, clock: DatabaseClock, hints: Hints) -> None:
        self.squad = Squad()
        self.ready = False
        self.problem: str | None = None
        """Why no command can be decided, where that is so."""
        self.moved = Hints()
        """Wakes when `squad` has moved on."""
        self.observers: list[Callable[[Sequence[Recorded]], None]] = []
        """Told about every event after it was committed, in order."""
        self.waiting = Waiting()
        self._dsn = dsn
        self._schema = schema
        self._clock = clock
        self._hints = hints
        self._contended = False
        self._in_doubt: InDoubt | None = None
        self._abandoned: Batch | None = None
        self._stopping = False
        self._current: Sequence[Ticket] = ()

    async def submit(self, request: Request, patience_seconds: float = PATIENCE_SECONDS) -> Outcome:
        """Has a command decided; returns once what came of it is durable.

        Raises:
            QueueFull: too many are waiting.
            Stopping: the service takes no more commands.
            Unavailable: the database was away for too long; nothing was carried out.
            OutcomeUnknown: the database went away in the commit; it may or may not have happened.
            CommandFailed: a fault of ours; nothing was carried out.
        """
        if self._stopping:
            raise Stopping
        ticket = Ticket(request, asyncio.get_running_loop().create_future())
        self.waiting.put(ticket)
        timer = asyncio.get_running_loop().call_later(patience_seconds, self._lose_patience, ticket)
        try:
            return await ticket.outcome
        finally:
            timer.cancel()

    async def run(self) -> None:
        """Runs until cancelled; reconnects by itself."""
        self._hints.also_wake(self.waiting.arrived)
        delay = _BACKOFF_SECONDS[0]
        while True:
            try:
                connection = await connect(self._dsn, self._schema, name="squad writer")
                try:
                    await self._begin(connection)
                    delay = _BACKOFF_SECONDS[0]
                    await self._work(connection)
                finally:
                    self.ready = False
                    connection.pgconn.finish()
            except (StoreUnavailable, StoreBusy, psycopg.Error, OSError) as error:
                _log.warning("writer lost its connection: %s", error)
                self.problem = "the database cannot be reached"
            except (UnknownEventType, UnreadableEvent) as error:
                _log.error("the log cannot be read: %s", error)
                self.problem = str(error)
                delay = _BACKOFF_SECONDS[1]
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

    async def drain(self) -> None:
        """Takes no more commands; returns when those that wait are answered."""
        self._stopping = True
        while self.waiting or self._current or self._in_doubt:
            await wait_for_hint(self.moved.ticket(), 0.05)

    def _lose_patience(self, ticket: Ticket) -> None:
        under_way = self._in_doubt.batch.tickets if self._in_doubt else self._current
        unknown = any(ticket is other for other in under_way)
        ticket.fail(OutcomeUnknown() if unknown else Unavailable())

    async def _begin(self, connection: Connection) -> None:
        with hanging_up_after(STUCK_AFTER_SECONDS, connection):
            await self._ask_the_time(connection)
        if self._in_doubt:
            with hanging_up_after(STUCK_AFTER_SECONDS, connection):
                await self._resolve_doubt(connection, self._in_doubt)
        if self.squad.head.position == 0:
            self.squad = await restore(connection)
        self._publish(await catch_up(connection, self.squad))
        self.problem = None
        self.ready = True

    async def _work(self, connection: Connection) -> None:
        looked_at = monotonic()
        while True:
            if not self.waiting:
                await wait_for_hint(self.waiting.arrived, POLL_SECONDS)
            self.waiting.arrived.clear()
            with hanging_up_after(STUCK_AFTER_SECONDS, connection):
                now = monotonic()
                if self._hints.position > self.squad.head.position or now - looked_at > POLL_SECONDS:
                    self._publish(await catch_up(connection, self.squad))
                    looked_at = now
                if tickets := self.waiting.drain():
                    await self._carry_out(connection, tickets)

    async def _carry_out(self, connection: Connection, tickets: list[Ticket]) -> None:
        self._current = tickets
        try:
            await self._commit(connection, tickets)
        except (StoreUnavailable, StoreBusy, psycopg.OperationalError):
            if not self._in_doubt:
                self.waiting.put_back(tickets)
            raise
        except Exception as error:  # noqa: BLE001 - nobody waits for ever, whatever went wrong
            await self._set_apart(connection, tickets, error)
        finally:
            self._current = ()

    async def _set_apart(self, connection: Connection, tickets: list[Ticket], error: Exception) -> None:
        """Finds the command that the database would not take, so that its neighbours get through."""
        await connection.rollback()
        if len(tickets) == 1:
            _log.error("command failed: %s: %r", type(tickets[0].request.command).__name__, error)
            tickets[0].fail(CommandFailed(str(error)))
            return
        half = len(tickets) // 2
        for part in (tickets[:half], tickets[half:]):
            try:
                await self._commit(connection, part)
            except (StoreUnavailable, StoreBusy, psycopg.OperationalError):
                raise
            except Exception as part_error:  # noqa: BLE001 - see _carry_out
                await self._set_apart(connection, part, part_error)

    async def _commit(self, connection: Connection, tickets: list[Ticket]) -> None:
        if not self._contended:
            try:
                await self._commit_in_one_trip(connection, tickets)
            except HeadMoved as moved:
                self._check_continuity(moved.head)
                self._contended = True
            except ClockDrifted as drift:
                _log.warning("%s", drift)
            else:
                return
        try:
            await self._commit_holding_the_lock(connection, tickets)
        except (HeadMoved, ClockDrifted) as unexpected:
            # Under the lock neither can be, unless the process was stopped in between. Begin afresh.
            raise StoreBusy(str(unexpected)) from unexpected

    def _check_continuity(self, head: int) -> None:
        """A log that has become shorter is another log, such as a restored backup: forget all we know."""
        if head < self.squad.head.position:
            position, self.squad = self.squad.head.position, Squad()
            raise StoreUnavailable(f"the log ends at {head} and has ended at {position}: it was replaced")

    async def _commit_in_one_trip(self, connection: Connection, tickets: list[Ticket]) -> None:
        draft = Draft(self.squad)
        answers = await self._recall(connection, draft, tickets)
        batch = self._decide(draft, tickets, answers)
        if batch.recorded:
            await self._append(connection, batch, draft)
        else:
            # Nothing to append, so nothing has compared the head yet; but an answer must be true as well.
            head = await log.head_position(connection)
            if head != self.squad.head.position:
                raise HeadMoved(head)
        self._settle(batch, draft)

    async def _commit_holding_the_lock(self, connection: Connection, tickets: list[Ticket]) -> None:
        asked = monotonic()
        missed, told = await log.lock_and_read(connection, self.squad.head.position)
        self._clock.learn(told, asked, monotonic())
        if missed:
            fold_page(self.squad, missed)
            self._publish(missed)
        while len(missed) == log.PAGE_EVENTS:
            missed = await catch_up(connection, self.squad)
            self._publish(missed)
        self._contended = bool(missed)
        draft = Draft(self.squad)
        answers = await self._recall(connection, draft, tickets)
        batch = self._decide(draft, tickets, answers)
        if batch.recorded:
            await self._append(connection, batch, draft, commit=True)
        else:
            await connection.execute("ROLLBACK")
        self._settle(batch, draft)

    async def _recall(
        self, connection: Connection, draft: Draft, tickets: Sequence[Ticket]
    ) -> dict[str, recall.Kept]:
        wanted = recall.needs(self.squad, tickets)
        return recall.fold(draft, await recall.read(connection, wanted)) if wanted else {}

    def _decide(self, draft: Draft, tickets: list[Ticket], answers: dict[str, recall.Kept]) -> Batch:
        now = self._clock.now()
        latest = self.squad.head.recorded_at
        # The log's time never goes backwards, even where the database's clock was set back.
        not_before = max(now, latest) if latest else now
        return decide_batch(
            draft, tickets, answers, now=not_before, decided_at=now, abandoned=self._abandoned
        )

    async def _append(
        self, connection: Connection, batch: Batch, draft: Draft, *, commit: bool = False
    ) -> None:
        asked = monotonic()
        self._in_doubt = InDoubt(batch, draft)
        try:
            told = await log.append(connection, batch.recorded, batch.decided_at, commit=commit)
        except (StoreUnavailable, psycopg.OperationalError):
            raise
        except EventStoreError:
            self._in_doubt = None
            raise
        self._in_doubt = None
        self._clock.learn(told, asked, monotonic())

    def _settle(self, batch: Batch, draft: Draft) -> None:
        """The batch is in the log: its effects are everybody's, and its callers are told."""
        self.squad.merge(draft)
        if batch.recorded:
            self._abandoned = None
            self._publish(batch.recorded)
        for ticket, outcome in batch.outcomes:
            if isinstance(outcome, Exception):
                ticket.fail(outcome)
            else:
                ticket.resolve(outcome)

    def _publish(self, recorded: Sequence[Recorded]) -> None:
        if recorded:
            for observe in self.observers:
                observe(recorded)
            self.moved.wake(self.squad.head.position)

    async def _resolve_doubt(self, connection: Connection, doubt: InDoubt) -> None:
        """Finds out whether the batch in doubt is in the log, once nobody can be still at it."""
        await connection.execute("BEGIN")
        await log.lock(connection)
        ids = [recorded.id for recorded in doubt.batch.recorded]
        found = await log.find_ids(connection, ids)
        await connection.execute("ROLLBACK")
        self._in_doubt = None
        _log.warning("a commit of %d events was in doubt; %d are in the log", len(ids), len(found))
        if found:
            self._settle(doubt.batch, doubt.draft)
        else:
            self._abandoned = doubt.batch
            self.waiting.put_back(list(doubt.batch.tickets))

    async def _ask_the_time(self, connection: Connection) -> None:
        asked = monotonic()
        told = await log.clock(connection)
        self._clock.learn(told, asked, monotonic())
        if abs(told - self._clock.now()) > timedelta(seconds=1):
            raise StoreBusy("the clock's reading took too long to be of use")

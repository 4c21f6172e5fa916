"""Append batches: decided at the log's head and appended in one round trip, or decided under its lock.

If another process appended first, the batch is decided again while holding the log's lock. That takes a
second round trip and always succeeds; the writer keeps doing it for as long as other processes write.

If the connection breaks during a commit, its outcome is unknown and the batch is in doubt. The next
connection resolves this under the lock, before anything else is decided: if the events' ids are in the
log, the commit happened. If they are not, and the log still ends where the batch would go, the commit could
still happen later, because the request may still be on its way to the server. So another event is appended
in that place first, as a fence.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from itertools import chain, islice
from time import monotonic
from typing import TYPE_CHECKING

from eventstore import log, lookup, pooler
from eventstore.connection import Connection, closing_after, pop_lock_wait
from eventstore.errors import (
    ClockDrifted,
    EventStoreError,
    HeadMoved,
    StoreBusy,
    StoreUnavailable,
)
from eventstore.events import SubjectForgotten
from eventstore.recorded import EMPTY_LOG
from eventstore.redaction import describe
from eventstore.translation import translating
from service.history import recall
from service.history.folding import STUCK_AFTER_SECONDS
from service.memory.draft import Draft
from service.writing.batch import Batch, decide_batch
from service.writing.batch_size import BatchSizer
from service.writing.command_queue import MAX_BATCH_COMMANDS
from service.writing.head_keeper import HeadKeeper
from service.writing.pipeline import Decided, Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.clock import DatabaseClock
    from service.memory.squad import Squad
    from service.requests import Ticket
    from service.writing.command_queue import CommandQueue
    from service.writing.sealer import Sealer, Sealing
    from service.writing.stats import WriterStats

_log = logging.getLogger(__name__)


class Appender:
    """Decides commands at the head of the log and appends the resulting events."""

    def __init__(
        self,
        clock: DatabaseClock,
        queue: CommandQueue,
        publish: Callable[[Sequence[Recorded], Sequence[AnyEvent]], None],
        sealing_: Sealing,
        replaced: Callable[[], None],
        stats: WriterStats,
    ) -> None:
        self.keeper = HeadKeeper(clock, publish, sealing_, replaced, stats)
        """Keeps the state that commands are decided on."""
        self.batch_sizer = BatchSizer()
        self.pipeline = Pipeline(clock, queue, sealing_, self.batch_sizer)
        """Decides the next batch while one is in flight."""
        self.contended = False
        """Whether other processes write too, so that batches are decided while holding the lock."""
        self.in_doubt: Batch | None = None
        """A batch whose commit may or may not have happened."""
        self._clock = clock
        self._queue = queue
        self._publish = publish
        self._sealing = sealing_
        self._stats = stats

    @property
    def squad(self) -> Squad:
        """The state at the log's head."""
        return self.keeper.squad

    async def begin(self, connection: Connection) -> Sequence[Ticket]:
        """Bring the state to the head over a new connection, and resolve a batch in doubt.

        Returns:
            The tickets of the batch in doubt, if it turned out not to be committed.

        Raises:
            StoreUnavailable, StoreBusy: not possible now, for example because no synchronous standby
                confirms the log's end.
            LogReplaced: this is another log; the state was discarded, and the next call reads the log anew.
            LogNotUnderstood: the log comes from a newer version of the software.
        """
        self.pipeline.discard()
        await self.keeper.begin(connection)
        if self.in_doubt is None:
            return ()
        with closing_after(STUCK_AFTER_SECONDS, connection), translating():
            return await self._resolve_doubt(connection, self.in_doubt)

    def batch_size(self, queue: int) -> int:
        """Return how many of the waiting commands to commit together."""
        # While other processes write, nothing is decided ahead, and every commit waits for the lock.
        return MAX_BATCH_COMMANDS if self.contended else self.batch_sizer.initial_size(queue)

    async def commit(
        self,
        connection: Connection,
        tickets: list[Ticket],
        decided: Decided | None,
        *,
        join: Callable[[], None],
        defer: Callable[[list[Ticket]], None],
    ) -> None:
        """Decide the tickets' commands at the head, append their events, and answer the callers.

        Args:
            connection: the one that `begin` was called with.
            tickets: the commands.
            decided: the batch, if it was decided ahead.
            join: called when the lock is held; adds to `tickets` those that have been queued meanwhile.
            defer: called with tickets that were removed from `tickets` because the batch is full.

        Raises:
            StoreUnavailable: the connection broke; the batch is `in_doubt` if it may have been committed.
            StoreBusy, LogNotUnderstood: nothing was stored; retry on a new connection.
            Exception: nothing was stored, because of one of the commands.
        """
        if decided is None:
            self.pipeline.discard()
        with closing_after(STUCK_AFTER_SECONDS, connection), translating():
            await self._sealing.replenish(connection, self._likely_batch(tickets))
            if not self.contended:
                try:
                    await self._commit_optimistically(connection, tickets, decided, defer)
                except HeadMoved as moved:
                    self.keeper.check_continuity(moved.head)
                    self.contended = True
                except ClockDrifted as drift:
                    _log.warning("%s", drift)
                else:
                    return
            await self._commit_under_lock(connection, tickets, join, defer)

    def _likely_batch(self, tickets: Sequence[Ticket]) -> Iterable[Ticket]:
        """Return the tickets, and under contention those likely to join during the wait for the lock."""
        if not self.contended:
            return tickets
        return islice(chain(tickets, self._queue), MAX_BATCH_COMMANDS)

    async def _commit_optimistically(
        self,
        connection: Connection,
        tickets: list[Ticket],
        decided: Decided | None,
        defer: Callable[[list[Ticket]], None],
    ) -> None:
        draft = decided.draft if decided else Draft(self.squad)
        batch = decided.batch if decided else await self._decide(connection, draft, tickets)
        _trim(batch, tickets, defer)
        if decided:
            await self._sealing.store_keys(connection, batch.sealer)
        if batch.recorded:
            with nullcontext() if _destroys_key(batch) else self.pipeline.deciding_on_top(draft):
                await self._append(connection, batch)
        else:
            # Without an append, nothing has compared the head yet; but an answer must not be stale either.
            head = await log.head_position(connection)
            if head != self.squad.head.position:
                raise HeadMoved(head)
            await self.keeper.confirmed.ensure(connection, head)
        self._settle(batch, draft)

    async def _commit_under_lock(
        self,
        connection: Connection,
        tickets: list[Ticket],
        join: Callable[[], None],
        defer: Callable[[list[Ticket]], None],
    ) -> None:
        try:
            self.contended = await self.keeper.lock_log(connection)
            join()
            draft = Draft(self.squad)
            batch = await self._decide(connection, draft, tickets)
            _trim(batch, tickets, defer)
            if batch.recorded:
                await self._append(connection, batch, commit=True)
            else:
                await connection.execute("ROLLBACK")
        except StoreUnavailable:
            raise
        except ClockDrifted as drift:
            # The process was suspended in between, or deciding takes too long: try fewer at a time.
            if len(tickets) == 1:
                raise StoreBusy(str(drift)) from drift
            await connection.rollback()
            raise
        except HeadMoved as unexpected:
            # Impossible under the lock, unless the process was suspended in between. Start over.
            raise StoreBusy(str(unexpected)) from unexpected
        except Exception:
            # The lock stops every other writer: whatever went wrong, release it first.
            await connection.rollback()
            raise
        if not batch.recorded:
            await self.keeper.confirmed.ensure(connection, self.squad.head.position)
        self._settle(batch, draft)

    async def _decide(self, connection: Connection, draft: Draft, tickets: Sequence[Ticket]) -> Batch:
        answers: dict[str, recall.EarlierAnswer] = {}
        if reads := recall.required_reads(self.squad, tickets):
            answers = recall.fold(draft, await recall.read(connection, reads, self._sealing.keyring))
            await recall.find_traces(connection, draft, reads)
        sealer = await self._sealing.prepare(connection, draft, tickets, answers)
        batch = self._decide_batch(draft, tickets, answers, sealer)
        await self._sealing.store_keys(connection, sealer)
        return batch

    def _decide_batch(
        self,
        draft: Draft,
        tickets: Sequence[Ticket],
        answers: dict[str, recall.EarlierAnswer],
        sealer: Sealer | None = None,
        abandoned: Batch | None = None,
    ) -> Batch:
        now = self._clock.now()
        latest = self.squad.head.recorded_at
        # The log's time never goes backwards, even where the database's clock was set back.
        not_before = max(now, latest) if latest else now
        with self.batch_sizer.timing_decisions(len(tickets)):
            return decide_batch(
                draft, tickets, answers, now=not_before, decided_at=now, sealer=sealer, abandoned=abandoned
            )

    async def _append(self, connection: Connection, batch: Batch, *, commit: bool = False) -> None:
        sent_at = monotonic()
        self.in_doubt = batch
        try:
            database_time = await log.append(
                connection,
                batch.recorded,
                batch.decided_at,
                commit=commit,
                after=self.squad.head if pooler.is_pooled(connection) else EMPTY_LOG,
            )
        except StoreUnavailable:
            raise
        except EventStoreError:
            self.in_doubt = None
            raise
        except Exception as unexpected:
            raise StoreUnavailable(describe(unexpected)) from unexpected
        finally:
            self._stats.lock(pop_lock_wait(connection))
        self.in_doubt = None
        received_at = monotonic()
        self._clock.adjust(database_time, sent_at, received_at)
        self.batch_sizer.record_append(received_at - sent_at)
        self._stats.batch(batch, received_at - sent_at)

    def _settle(self, batch: Batch, draft: Draft) -> None:
        """Merge a committed batch into the state, answer its callers, and publish its events."""
        try:
            self.squad.merge(draft)
        except Exception as fault:
            self.keeper.discard()
            raise StoreUnavailable(
                f"the state is lost and must be read again: {describe(fault)}"
            ) from fault
        finally:
            # It is committed: whatever fails here, no caller may believe that it is not.
            _resolve_tickets(batch)
        self.pipeline.rebase(self.squad)
        if batch.recorded:
            self.keeper.confirmed.record_append(batch.recorded[-1].position)
            self._sealing.settle(batch.sealer)
            self._sealing.observe(batch.recorded)
            self._publish(batch.recorded, batch.events)

    async def _resolve_doubt(self, connection: Connection, batch: Batch) -> Sequence[Ticket]:
        try:
            await self.keeper.lock_log(connection)
            found = await lookup.find_ids(connection, [recorded.id for recorded in batch.recorded])
            if not found and self.squad.head.position == batch.recorded[0].position - 1:
                await self._append_fence(connection, batch)
            else:
                await connection.execute("ROLLBACK")
        except (HeadMoved, ClockDrifted) as unexpected:
            raise StoreBusy(str(unexpected)) from unexpected
        await self.keeper.confirmed.ensure(connection, self.squad.head.position)
        self.in_doubt = None
        _log.warning(
            "a commit of %d events was in doubt; %d are in the log", len(batch.recorded), len(found)
        )
        if not found:
            return batch.tickets
        _resolve_tickets(batch)
        return ()

    async def _append_fence(self, connection: Connection, batch: Batch) -> None:
        """Append a fence in the batch's place. If this commit is lost as well, the batch stays in doubt."""
        draft = Draft(self.squad)
        fence = self._decide_batch(draft, (), {}, abandoned=batch)
        await log.append(connection, fence.recorded, fence.decided_at, commit=True)
        self._settle(fence, draft)


def _destroys_key(batch: Batch) -> bool:
    """Whether the batch forgets somebody. Then nothing is decided ahead on top of it.

    The key that it destroys stays cached until the commit, so events decided ahead could be sealed with it.
    """
    return any(recorded.type == SubjectForgotten.type for recorded in batch.recorded)


def _trim(batch: Batch, tickets: list[Ticket], defer: Callable[[list[Ticket]], None]) -> None:
    """Remove from `tickets` those that the batch had no room for, and leave them to a later batch."""
    if left := tickets[len(batch.tickets) :]:
        del tickets[len(batch.tickets) :]
        defer(left)


def _resolve_tickets(batch: Batch) -> None:
    for ticket, outcome in batch.outcomes:
        if isinstance(outcome, Exception):
            ticket.fail(outcome)
        else:
            ticket.resolve(outcome)

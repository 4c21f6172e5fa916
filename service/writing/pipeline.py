"""Deciding ahead: while one batch is being appended, the next one is decided on top of it.

The database takes about as long to append a batch as the writer takes to decide one, so the two overlap.
Nothing is promised by it: a batch decided ahead is appended only at the head that it was decided at. If
the batch below is not committed, the one above is discarded and its commands return to the queue.

Only commands that need nothing from the database, neither events of the log nor a key that is not cached,
are decided ahead: the connection is in use.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from service.history import recall
from service.memory.draft import Draft
from service.writing.batch import Batch, decide_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.clock import DatabaseClock
    from service.memory.squad import Squad
    from service.requests import Ticket
    from service.writing.batch_size import BatchSizer
    from service.writing.command_queue import CommandQueue
    from service.writing.sealer import Sealing


class Decided(NamedTuple):
    """A batch, and the state after it."""

    draft: Draft
    batch: Batch


class Pipeline:
    """Takes commands from the queue and decides them on top of the batch in flight."""

    def __init__(
        self, clock: DatabaseClock, queue: CommandQueue, sealing: Sealing, batch_sizer: BatchSizer
    ) -> None:
        self._clock = clock
        self._queue = queue
        self._batch_sizer = batch_sizer
        self._sealing = sealing
        self._base: Draft | None = None
        self._decided: Decided | None = None
        self._is_scheduled = False

    @property
    def tickets(self) -> Sequence[Ticket]:
        """The tickets whose commands were decided ahead."""
        return self._decided.batch.tickets if self._decided else ()

    def take(self) -> Decided | None:
        """Remove and return what was decided ahead, to be appended now."""
        decided, self._decided = self._decided, None
        return decided

    def discard(self) -> None:
        """Discard what was decided ahead; its commands return to the front of the queue."""
        if decided := self.take():
            self._queue.requeue(decided.batch.tickets)

    def rebase(self, squad: Squad) -> None:
        """Move the draft onto the squad, into which the batch below was merged after its commit."""
        if self._decided:
            self._decided.draft.rebase(squad)

    @contextmanager
    def deciding_on_top(self, base: Draft) -> Iterator[None]:
        """Decide queued and arriving commands while the batch of `base` is in flight."""
        self._base = base
        self._queue.on_arrival = self._schedule
        self._schedule()
        try:
            yield
        except BaseException:
            self.discard()
            raise
        finally:
            self._base = None
            self._queue.on_arrival = None

    def _schedule(self) -> None:
        """Decide soon, so that what arrives together is decided together, and after the batch was sent."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._decide)

    def join(self) -> None:
        """Add queued commands to what was decided ahead, before it is appended."""
        if self._decided:
            self._decide_on(self._decided.draft)

    def _decide(self) -> None:
        self._is_scheduled = False
        if self._base is not None and self._queue:
            self._decide_on(self._decided.draft if self._decided else Draft(self._base))

    def _decide_on(self, draft: Draft) -> None:
        before = self._decided
        if before and before.batch.is_full:
            return
        maximum = self._batch_sizer.pipelined_size() - len(self.tickets)
        size = before.batch.size if before else 0
        tickets = self._requeue_dependent(draft, self._queue.drain(maximum, size=size))
        if not tickets:
            return
        # The events of a batch share one time, never earlier than that of the batch below.
        decided_at = before.batch.decided_at if before else self._clock.now()
        latest = draft.head.recorded_at
        now = max(decided_at, latest) if latest else decided_at
        sealer = self._sealing.prepare_from_cache(before.batch.sealer if before else None, draft, tickets)
        with self._batch_sizer.timing_decisions(len(tickets)):
            batch = decide_batch(draft, tickets, {}, now=now, decided_at=decided_at, sealer=sealer)
        if left := tickets[len(batch.tickets) :]:
            self._queue.requeue(left)
        self._decided = Decided(draft, before.batch.followed_by(batch) if before else batch)

    def _requeue_dependent(self, draft: Draft, tickets: list[Ticket]) -> list[Ticket]:
        """Return the tickets before the first that needs the database; requeue the rest."""
        if not recall.required_reads(draft, tickets) and not self._sealing.lacks_keys(draft, tickets):
            return tickets
        for index, ticket in enumerate(tickets):
            if recall.required_reads(draft, [ticket]) or self._sealing.lacks_keys(draft, [ticket]):
                self._queue.requeue(tickets[index:])
                self._queue.on_arrival = None
                return tickets[:index]
        return tickets

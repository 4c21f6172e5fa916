"""Deciding ahead: while one batch is on its way into the log, the next one is decided above it.

The database is busy with a batch for about as long as deciding one takes, so the two go on beside each
other. Nothing is promised by it: what was decided ahead is appended only at the head that it was decided
at, and if the batch below does not get there, the one above is forgotten and its commands wait again.

Only commands that need nothing from the database are decided ahead, neither of the log nor a key that is
not at hand: the connection is in use.
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
    from service.writing.pace import Pace
    from service.writing.sealer import Sealing
    from service.writing.waiting import Waiting


class Decided(NamedTuple):
    """A batch, and the state as it will be after it."""

    draft: Draft
    batch: Batch


class Ahead:
    """Takes commands from the queue and decides them above the batch that is on its way."""

    def __init__(self, clock: DatabaseClock, waiting: Waiting, sealing: Sealing, pace: Pace) -> None:
        self._clock = clock
        self._waiting = waiting
        self._pace = pace
        self._sealing = sealing
        self._below: Draft | None = None
        self._decided: Decided | None = None
        self._is_due = False

    @property
    def tickets(self) -> Sequence[Ticket]:
        """Those whose commands were decided ahead."""
        return self._decided.batch.tickets if self._decided else ()

    def take(self) -> Decided | None:
        """What was decided ahead, to be appended now."""
        decided, self._decided = self._decided, None
        return decided

    def drop(self) -> None:
        """Forgets what was decided ahead; its commands wait again, before all others."""
        if decided := self.take():
            self._waiting.put_back(decided.batch.tickets)

    def rebase(self, squad: Squad) -> None:
        """The batch below is in the log, and its effects are the squad's."""
        if self._decided:
            self._decided.draft.rebase(squad)

    @contextmanager
    def deciding_above(self, below: Draft) -> Iterator[None]:
        """Decides what waits and what arrives, for as long as the batch of `below` is on its way."""
        self._below = below
        self._waiting.on_arrival = self._soon
        self._soon()
        try:
            yield
        except BaseException:
            self.drop()
            raise
        finally:
            self._below = None
            self._waiting.on_arrival = None

    def _soon(self) -> None:
        """Not at once: what arrives together is decided together, and after the batch below was sent."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._decide)

    def join(self) -> None:
        """Decides what waits beside what was decided ahead, before that is appended."""
        if self._decided:
            self._decide_on(self._decided.draft)

    def _decide(self) -> None:
        self._is_due = False
        if self._below is not None and self._waiting:
            self._decide_on(self._decided.draft if self._decided else Draft(self._below))

    def _decide_on(self, draft: Draft) -> None:
        before = self._decided
        if before and before.batch.is_full:
            return
        most, size = self._pace.beside() - len(self.tickets), before.batch.size if before else 0
        tickets = self._without_needs(draft, self._waiting.drain(most, size=size))
        if not tickets:
            return
        # The events of a batch share one time, and it is never before that of the batch below.
        decided_at = before.batch.decided_at if before else self._clock.now()
        latest = draft.head.recorded_at
        now = max(decided_at, latest) if latest else decided_at
        sealer = self._sealing.ahead(before.batch.sealer if before else None, draft, tickets)
        with self._pace.deciding(len(tickets)):
            batch = decide_batch(draft, tickets, {}, now=now, decided_at=decided_at, sealer=sealer)
        if left := tickets[len(batch.tickets) :]:
            self._waiting.put_back(left)
        self._decided = Decided(draft, before.batch.and_then(batch) if before else batch)

    def _without_needs(self, draft: Draft, tickets: list[Ticket]) -> list[Ticket]:
        """Those up to the first one that needs the database; it waits, and so do all after it."""
        if not recall.needs(draft, tickets) and not self._sealing.lacks_keys(draft, tickets):
            return tickets
        for index, ticket in enumerate(tickets):
            if recall.needs(draft, [ticket]) or self._sealing.lacks_keys(draft, [ticket]):
                self._waiting.put_back(tickets[index:])
                self._waiting.on_arrival = None
                return tickets[:index]
        return tickets

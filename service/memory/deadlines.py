"""Which rows expire next, kept beside the rows so that a check costs only as much as what has changed.

There can be hundreds of thousands of operations, reservations and agents. If something expires at every
check, scanning all of them each time is too slow.
"""

from __future__ import annotations

from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

R = TypeVar("R")

_Heap = list[tuple[datetime, Any]]

NEVER = datetime.max.replace(tzinfo=UTC)
"""The deadline of a row that never expires."""

_MANY = 1_000
"""Once so many have expired at once, the rest are filtered out in one pass, not popped one by one."""

_FEW = 100
"""How many outdated entries the heap may hold, besides one for each row, before it is rebuilt."""


class Deadlines(Generic[R]):
    """The deadlines of a changing set of rows.

    Args:
        rows: by key. Whoever changes them must call `change`.
        moment: a row's deadline, or None if it has none.
        order: the sort key by which expired rows are returned.
    """

    def __init__(
        self,
        rows: Mapping[Any, R],
        moment: Callable[[R], datetime | None],
        order: Callable[[R], int],
    ) -> None:
        self._rows = rows
        self._moment = moment
        self._order = order
        self._pending: _Heap | None = None
        """A heap of the deadlines to come. When a row changes, its old entry stays, and is skipped when it
        comes up. None until the first query: most copies of a squad are never queried."""
        self._expired: list[tuple[int, datetime, Any]] = []
        """Entries whose deadline had passed by `_checked_at`, in order. Those of rows that have changed
        since are skipped."""
        self._checked_at: datetime | None = None
        """The latest time queried. The next query may be for an earlier one, if a clock was corrected."""

    def change(self, keys: Iterable[Any]) -> None:
        """Note that rows were added, changed or removed."""
        pending = self._pending
        if pending is None:
            return
        for key in keys:
            row = self._rows.get(key)
            if row is not None and (moment := self._moment(row)):
                heappush(pending, (moment, key))
        if len(pending) > 2 * len(self._rows) + _FEW:
            self._pending, self._expired = None, []

    def expired(self, now: datetime) -> Iterator[R]:
        """Yield the rows whose deadline has passed, in order."""
        self._catch_up(now)
        before: Any = None
        for entry in self._expired:
            # A row that changed, but kept its deadline and its order, has two equal entries, next to each
            # other.
            if entry != before and entry[1] <= now and (row := self._current_expired(*entry)) is not None:
                yield row
                before = entry

    def next(self, now: datetime) -> datetime:
        """Return the first deadline after now; `NEVER` if there is none."""
        pending = self._first_of(self._catch_up(now))
        if now == self._checked_at:
            return pending
        postponed = (
            moment for _, moment, key in self._expired if moment > now and self._current(moment, key)
        )
        return min((pending, *postponed))

    def first(self) -> datetime:
        """Return the first deadline, or any of those that had passed at the last check.

        It is `NEVER` if there is none.
        """
        if self._pending is None:
            self._pending = self._all()
            heapify(self._pending)
        self._drop_handled()
        pending = self._first_of(self._pending)
        return min(pending, self._expired[0][1]) if self._expired else pending

    def _catch_up(self, now: datetime) -> _Heap:
        """Move the entries that have expired by now out of the heap; return the heap."""
        pending = self._pending
        came: _Heap = []
        if pending is None:
            pending = self._pending = self._all()
            came = _split_off(pending, now)
        self._checked_at = max(now, self._checked_at or now)
        self._drop_handled()
        while pending and pending[0][0] <= now:
            if len(came) >= _MANY:
                came += _split_off(pending, now)
                break
            came.append(heappop(pending))
        if came:
            found = ((moment, key, self._current(moment, key)) for moment, key in came)
            self._expired += [
                (self._order(row), moment, key) for moment, key, row in found if row is not None
            ]
            self._expired.sort()
        return pending

    def _all(self) -> _Heap:
        moments = ((self._moment(row), key) for key, row in self._rows.items())
        return [(moment, key) for moment, key in moments if moment]

    def _drop_handled(self) -> None:
        """Drop outdated entries from the front: expired rows are handled in order."""
        done = 0
        for entry in self._expired:
            if self._current_expired(*entry) is not None:
                break
            done += 1
        del self._expired[:done]

    def _first_of(self, pending: _Heap) -> datetime:
        while pending and self._current(*pending[0]) is None:
            heappop(pending)
        return pending[0][0] if pending else NEVER

    def _current(self, moment: datetime, key: Any) -> R | None:
        """Return the row with this deadline, if it still has it."""
        row = self._rows.get(key)
        return row if row is not None and self._moment(row) == moment else None

    def _current_expired(self, order: int, moment: datetime, key: Any) -> R | None:
        """Return the row with this deadline and order, if it still has both."""
        row = self._current(moment, key)
        return row if row is not None and self._order(row) == order else None


def _split_off(pending: _Heap, now: datetime) -> _Heap:
    """Remove and return the expired entries of a list that need not be a heap, and make it one."""
    expired = [entry for entry in pending if entry[0] <= now]
    pending[:] = [entry for entry in pending if entry[0] > now]
    heapify(pending)
    return expired

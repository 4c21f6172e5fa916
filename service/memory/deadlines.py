"""Whose time runs out next, kept beside the rows: a look takes as long as what has changed, or is over.

There can be hundreds of thousands of operations, reservations and agents, and where something is over at
every look, they cannot all be gone through each time.
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
"""When a row runs out of time that never does."""

_MANY = 1_000
"""So many that are over at once are no longer taken off the heap one by one."""

_FEW = 100
"""So many outdated entries may lie in the heap, besides one for each row, before it is made anew."""


class Deadlines(Generic[R]):
    """The moments of some rows that change.

    Args:
        rows: by key. Whoever changes some of them says so.
        moment: a row's; None of one that has none.
        order: in which those that are over are told, by row.
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
        self._coming: _Heap | None = None
        """A heap of the moments that are yet to come. A row that changes is entered once more, and its old
        entry is passed over when its turn comes. None until somebody asks: of most copies of a squad nobody
        does."""
        self._over: list[tuple[int, datetime, Any]] = []
        """Entries whose moment had come by `_looked_at`, in order. Those of rows that changed since are
        passed over."""
        self._looked_at: datetime | None = None
        """The latest time that was asked about. The next may be earlier, where a clock was put right."""

    def change(self, keys: Iterable[Any]) -> None:
        """Takes note of rows that are new, changed or gone."""
        coming = self._coming
        if coming is None:
            return
        for key in keys:
            row = self._rows.get(key)
            if row is not None and (moment := self._moment(row)):
                heappush(coming, (moment, key))
        if len(coming) > 2 * len(self._rows) + _FEW:
            self._coming, self._over = None, []

    def over(self, now: datetime) -> Iterator[R]:
        """The rows whose moment has come, in order."""
        self._catch_up(now)
        before: Any = None
        for entry in self._over:
            # One that changed, but neither its moment nor its place, is there once more, next to itself.
            if entry != before and entry[1] <= now and (row := self._still_over(*entry)) is not None:
                yield row
                before = entry

    def next(self, now: datetime) -> datetime:
        """The first moment that has not come by now; `NEVER` where there is none."""
        coming = self._first_of(self._catch_up(now))
        if now == self._looked_at:
            return coming
        put_off = (moment for _, moment, key in self._over if moment > now and self._still(moment, key))
        return min((coming, *put_off))

    def first(self) -> datetime:
        """The first moment; where some had come when it was last looked, that of any of them.

        It is `NEVER` where there is none.
        """
        if self._coming is None:
            self._coming = self._all()
            heapify(self._coming)
        self._forget_those_done()
        coming = self._first_of(self._coming)
        return min(coming, self._over[0][1]) if self._over else coming

    def _catch_up(self, now: datetime) -> _Heap:
        """Moves those that are over by now out of the heap; gives the heap."""
        coming = self._coming
        came: _Heap = []
        if coming is None:
            coming = self._coming = self._all()
            came = _take_over(coming, now)
        self._looked_at = max(now, self._looked_at or now)
        self._forget_those_done()
        while coming and coming[0][0] <= now:
            if len(came) >= _MANY:
                came += _take_over(coming, now)
                break
            came.append(heappop(coming))
        if came:
            found = ((moment, key, self._still(moment, key)) for moment, key in came)
            self._over += [(self._order(row), moment, key) for moment, key, row in found if row is not None]
            self._over.sort()
        return coming

    def _all(self) -> _Heap:
        moments = ((self._moment(row), key) for key, row in self._rows.items())
        return [(moment, key) for moment, key in moments if moment]

    def _forget_those_done(self) -> None:
        """They are dealt with in their order, so that they stand in front."""
        done = 0
        for entry in self._over:
            if self._still_over(*entry) is not None:
                break
            done += 1
        del self._over[:done]

    def _first_of(self, coming: _Heap) -> datetime:
        while coming and self._still(*coming[0]) is None:
            heappop(coming)
        return coming[0][0] if coming else NEVER

    def _still(self, moment: datetime, key: Any) -> R | None:
        """The row that has this moment, if it still has."""
        row = self._rows.get(key)
        return row if row is not None and self._moment(row) == moment else None

    def _still_over(self, order: int, moment: datetime, key: Any) -> R | None:
        """The row that has this moment and this place, if it still has."""
        row = self._still(moment, key)
        return row if row is not None and self._order(row) == order else None


def _take_over(coming: _Heap, now: datetime) -> _Heap:
    """Takes those that are over out of what need be no heap yet, and makes one of it."""
    over = [entry for entry in coming if entry[0] <= now]
    coming[:] = [entry for entry in coming if entry[0] > now]
    heapify(coming)
    return over

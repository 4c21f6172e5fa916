"""The rows of a page of the log while it is folded, and those that stay cached for the next page."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING, Any, LiteralString

from projections import storage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventstore.connection import Connection
    from projections.projection import Table

CACHED_ROWS = 20_000
"""How many rows of each table stay cached between pages; the hot ones are few."""


class RowCache(OrderedDict[Any, Any]):
    """A cache of one table's rows, all of which are in the database as well."""

    is_lasting = False
    """Whether rows that a page writes stay cached for the next page.

    If not, a page has only the rows that were fetched for it. This suits messages: most rows are messages,
    and nothing reads one again until somebody is forgotten."""


class PageRows:
    """One table's rows while a page is folded: those that the page changed, above those of the database."""

    def __init__(self, table: Table[Any, Any], cache: RowCache | None) -> None:
        self.table = table
        self.changed: dict[Any, Any] = {}
        self.put = self.changed.__setitem__
        self._cache = cache

    def get(self, key: Any, /) -> Any:
        """Return the current row, if it is cached."""
        if key in self.changed:
            return self.changed[key]
        return self._cache.get(key) if self._cache else None

    def keep(self) -> bool:
        """Cache what the page changed for the next one. Return False if other rows were evicted for it."""
        if self._cache is None or not self._cache.is_lasting:
            return True
        self._cache.update(self.changed)
        too_many = len(self._cache) - CACHED_ROWS
        # The order in which rows were written only matters when some have to be evicted soon.
        if too_many > -CACHED_ROWS // 2:
            for key in self.changed:
                self._cache.move_to_end(key)
        for _ in range(too_many):
            self._cache.popitem(last=False)
        return too_many <= 0


class FoldedPage(dict["Table[Any, Any]", PageRows]):
    """The result of folding a page, by table."""

    def __init__(self, caches: Mapping[str, RowCache]) -> None:
        super().__init__()
        self._caches = caches

    def __missing__(self, table: Table[Any, Any]) -> PageRows:
        rows = self[table] = PageRows(table, self._caches.get(table.name))
        return rows

    async def write(
        self, connection: Connection, first: LiteralString = "SELECT", parameters: Sequence[Any] = ()
    ) -> None:
        """Execute `first`, a SELECT, and then write what the page changed, in one statement."""
        changed = sorted((rows for rows in self.values() if rows.changed), key=lambda rows: rows.table.name)
        statement = storage.upserts_statement(first, tuple(rows.table for rows in changed))
        arrays = [storage.arrays_of(rows.table, rows.changed.values()) for rows in changed]
        await connection.execute(statement, [*parameters, *chain.from_iterable(arrays)], prepare=True)

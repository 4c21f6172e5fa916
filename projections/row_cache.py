"""The rows of a page of the log while it is folded, and those that stay cached for the next page."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING, Any, LiteralString

import orjson

from projections import storage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventstore.connection import Connection
    from projections.projection import Table

CACHED_ROWS = 20_000
"""How many rows of each table stay cached between pages; the hot ones are few."""

MAX_ROW_CHARACTERS = 2_000
"""How many characters a cached row may have in its large columns. Thousands of rows as large as a request
body would take gigabytes, and reading a large row again costs little beside writing it."""


class RowCache(OrderedDict[Any, Any]):
    """A cache of one table's rows, all of which are in the database as well."""

    keeps_changes = False
    """Whether rows that a page writes stay cached for the next page.

    If not, a page has only the rows that were fetched for it. This suits messages: most rows are messages,
    and nothing reads one again until somebody is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self._large: list[Any] = []

    def add(self, table: Table[Any, Any], row: Any) -> None:
        """Add a row that was fetched for the page."""
        key = table.key_of(row)
        self[key] = row
        if table.large_columns and _is_large(table, row):
            self._large.append(key)

    def end_page(self) -> None:
        """End the page: evict what must not stay."""
        if not self.keeps_changes:
            self.clear()
        for key in self._large:
            self.pop(key, None)
        self._large.clear()

    def add_changes(self, table: Table[Any, Any], rows: Mapping[Any, Any]) -> bool:
        """Cache rows that the page wrote. Return False if any rows, these or others, are not kept."""
        large = [key for key, row in rows.items() if _is_large(table, row)] if table.large_columns else ()
        self.update(rows)
        self._large += large
        too_many = len(self) - CACHED_ROWS
        # The order in which rows were written only matters when some have to be evicted soon.
        if too_many > -CACHED_ROWS // 2:
            for key in rows:
                self.move_to_end(key)
        for _ in range(too_many):
            self.popitem(last=False)
        return too_many <= 0 and not large


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

    def add_to_cache(self) -> bool:
        """Cache what the page changed for the next one. Return False if any rows were not kept."""
        if self._cache is None or not self._cache.keeps_changes:
            return True
        return self._cache.add_changes(self.table, self.changed)


def _is_large(table: Table[Any, Any], row: Any) -> bool:
    size = 0
    for column in table.large_columns:
        if (value := getattr(row, column)) is not None:
            size += len(value if isinstance(value, str) else orjson.dumps(value))
    return size > MAX_ROW_CHARACTERS


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

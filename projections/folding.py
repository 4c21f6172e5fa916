"""Folds pages of the log into the read tables, a page and its position in one transaction.

The tables are those that come first on the connection's search path: the live ones for the projector, a
second set beside them for a replay, temporary ones for a verification. Rows stay at hand between pages, so
one folder is for one set of tables.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from eventstore import codec, sealing
from eventstore.events import RequestAnswered
from eventstore.translation import translating
from projections import storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent
    from eventstore.keys import Keyring
    from eventstore.recorded import Recorded
    from projections.projection import K, Projection, R, Rows, Table

CACHED_ROWS = 20_000
"""How many rows of each table stay at hand between pages; the hot ones are few."""


class _PageRows:
    """One table's rows while a page is folded: the database's below, what the page changed above."""

    def __init__(self, table: Table[Any, Any], cache: OrderedDict[Any, Any]) -> None:
        self.table = table
        self.cache = cache
        self.changed: dict[Any, Any] = {}

    def get(self, key: Any, /) -> Any:
        return self.changed[key] if key in self.changed else self.cache.get(key)

    def put(self, key: Any, row: Any, /) -> None:
        self.changed[key] = row

    def keep(self) -> None:
        """The page is committed: its rows are the database's now."""
        self.cache.update(self.changed)
        for key in self.changed:
            self.cache.move_to_end(key)
        while len(self.cache) > CACHED_ROWS:
            self.cache.popitem(last=False)


class _Page:
    """The view that handlers get while a page is folded."""

    def __init__(self, caches: dict[str, OrderedDict[Any, Any]]) -> None:
        self._caches = caches
        self.tables: dict[str, _PageRows] = {}

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        rows = self.tables.get(table.name)
        if rows is None:
            cache = self._caches.setdefault(table.name, OrderedDict())
            rows = self.tables[table.name] = _PageRows(table, cache)
        return rows


class PageFolder:
    """Folds pages into one set of tables.

    `generation` is that of the tables as `projections` had it when the caller looked; `keyring` holds the
    keys of sealed payloads that are at hand already.
    """

    def __init__(self, generation: int = 1, keyring: Keyring | None = None) -> None:
        self._generation = generation
        self._keyring = keyring
        self._caches: dict[str, OrderedDict[Any, Any]] = {}

    async def advance(
        self, connection: Connection, members: Sequence[Projection], page: Sequence[Recorded]
    ) -> None:
        """Folds consecutive stored events into the tables of projections that stand just before them.

        Raises:
            StoreBusy: one of them stands elsewhere, or its tables were replaced; nothing was written.
            StoreUnavailable: the connection broke; the page was written whole or not at all.
            UnknownEventType, UnreadableEvent, MissingRow: an event cannot be folded; nothing was written.
        """
        # Answers are nobody's rows, so nobody needs to read them.
        shown = await sealing.reveal(connection, page, self._keyring, veiled=(RequestAnswered.type,))
        events = [codec.decode(recorded) for recorded in shown]
        await self._fetch(connection, members, events)
        view = _Page(self._caches)
        for event, recorded in zip(events, page, strict=True):
            for member in members:
                member.apply(view, event, recorded)
        names = [member.name for member in members]
        before, after = page[0].position - 1, page[-1].position
        with translating():
            async with connection.pipeline(), connection.transaction():
                for rows in view.tables.values():
                    if rows.changed:
                        await storage.write(connection, rows.table, rows.changed.values())
                await connection.execute(
                    "SELECT advance_projections(%s, %s, %s, %s)",
                    (names, before, after, self._generation),
                    prepare=True,
                )
        for rows in view.tables.values():
            rows.keep()

    async def _fetch(
        self, connection: Connection, members: Sequence[Projection], events: Sequence[AnyEvent]
    ) -> None:
        """Brings every row that the page is going to read into the caches."""
        wanted: dict[Table[Any, Any], set[Any]] = {}
        for event in events:
            for member in members:
                for table, key in member.touches(event):
                    if key not in self._caches.setdefault(table.name, OrderedDict()):
                        wanted.setdefault(table, set()).add(key)
        for table, keys in wanted.items():
            cache = self._caches[table.name]
            for row in await storage.load(connection, table, list(keys)):
                cache[table.key_of(row)] = row

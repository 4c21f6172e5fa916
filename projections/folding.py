"""Folds pages of the log into the read tables, a page and its position in one transaction.

The tables are those that come first on the connection's search path: the live ones for the projector, a
session's own temporary ones for a replay or a verification (`projections.refold`). Rows stay at hand
between pages, so one folder is for one set of tables.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from eventstore import codec, sealing
from eventstore.errors import LogNotUnderstood
from eventstore.events import RequestAnswered
from eventstore.translation import translating
from projections import storage
from projections.projection import Handler, Table, Touched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent, Event
    from eventstore.keys import Keyring
    from eventstore.recorded import Recorded
    from projections.projection import Projection

CACHED_ROWS = 20_000
"""How many rows of each table stay at hand between pages; the hot ones are few."""

_ADVANCE = "SELECT advance_projections(%s, %s, %s, %s)"
# No projection is at -1: where the log has another event there, this raises as where one stands elsewhere.
_ADVANCE_IF_SO = """
    SELECT advance_projections(
        %s, CASE WHEN (SELECT hash FROM events WHERE position = %s) = %s THEN %s::bigint ELSE -1 END, %s, %s
    )
"""

_DECODED_AT_ONCE = 500
"""After so many events others get their turn: for a service with callers a page takes too long."""


class _PageRows:
    """One table's rows while a page is folded: the database's below, what the page changed above."""

    def __init__(self, table: Table[Any, Any], cache: OrderedDict[Any, Any] | None) -> None:
        self.table = table
        self.changed: dict[Any, Any] = {}
        self.put = self.changed.__setitem__
        self._cache = cache

    def get(self, key: Any, /) -> Any:
        if key in self.changed:
            return self.changed[key]
        return self._cache.get(key) if self._cache else None

    def keep(self) -> None:
        """The page is committed: its rows are the database's now."""
        if self._cache is None:
            return
        self._cache.update(self.changed)
        for key in self.changed:
            self._cache.move_to_end(key)
        while len(self._cache) > CACHED_ROWS:
            self._cache.popitem(last=False)


class FoldedPage(dict["Table[Any, Any]", _PageRows]):
    """What came of a page, by table."""

    def __init__(self, caches: dict[str, OrderedDict[Any, Any]]) -> None:
        super().__init__()
        self._caches = caches

    def __missing__(self, table: Table[Any, Any]) -> _PageRows:
        rows = self[table] = _PageRows(table, self._caches.get(table.name))
        return rows

    async def write(self, connection: Connection) -> None:
        """Writes what the page changed, in the transaction that the caller began."""
        for rows in self.values():
            if rows.changed:
                await storage.write(connection, rows.table, rows.changed.values())

    async def write_after(
        self, connection: Connection, first: LiteralString, parameters: Sequence[Any]
    ) -> None:
        """Writes what the page changed after `first`, a SELECT, in one statement and transaction."""
        changed = sorted((rows for rows in self.values() if rows.changed), key=lambda rows: rows.table.name)
        statement = storage.upserts_statement(first, tuple(rows.table for rows in changed))
        arrays = [storage.arrays_of(rows.table, rows.changed.values()) for rows in changed]
        await connection.execute(statement, [*parameters, *chain.from_iterable(arrays)], prepare=True)

    def keep(self) -> None:
        """The transaction is committed."""
        for rows in self.values():
            rows.keep()


class _View:
    """What handlers get while a page is folded. It is asked for every row, so it asks the dictionary."""

    def __init__(self, folded: FoldedPage) -> None:
        self.rows: Any = folded.__getitem__


class _Handling(NamedTuple):
    """What a kind of event sets off, and what is read for it."""

    handlers: tuple[Handler, ...]
    touches: tuple[tuple[Table[Any, Any], OrderedDict[Any, Any], Callable[[Any], Any]], ...]
    """Of each row that a handler reads: the table, its rows at hand, and how the event names it."""
    touches_several: tuple[Touched, ...]


class PageFolder:
    """Folds pages into one set of tables.

    `generation` is that of the tables as `projections` had it when the caller looked; `keyring` holds the
    keys of sealed payloads that are at hand already.
    """

    def __init__(self, generation: int = 1, keyring: Keyring | None = None) -> None:
        self._generation = generation
        self._keyring = keyring
        self._handling: dict[tuple[str, ...], Mapping[type[Event], _Handling]] = {}
        # Only of tables that handlers read: most rows are written and never looked at again.
        self._caches: defaultdict[str, OrderedDict[Any, Any]] = defaultdict(OrderedDict)

    async def advance(
        self,
        connection: Connection,
        members: Sequence[Projection],
        page: Sequence[Recorded],
        events: Sequence[AnyEvent] | None = None,
    ) -> None:
        """Folds consecutive events into the tables of projections that stand just before them.

        Args:
            connection: in autocommit mode; the tables are those that come first on its search path.
            members: the projections.
            page: the events as they are stored.
            events: what they tell, where the page was not read from the log. Then nothing is written
                unless the log has it.

        Raises:
            StoreBusy: one of them stands elsewhere, its tables were replaced, or the log has another page
                there; nothing was written.
            StoreUnavailable: the connection broke; the page was written whole or not at all.
            UnknownEventType, UnreadableEvent, LogNotUnderstood: an event cannot be folded; nothing was
                written.
        """
        names = [member.name for member in members]
        before, last = page[0].position - 1, page[-1]
        query: LiteralString = _ADVANCE
        parameters: tuple[Any, ...] = (names, before, last.position, self._generation)
        if events is None:
            events = await decoded(connection, page, self._keyring)
        else:
            query = _ADVANCE_IF_SO
            parameters = (names, last.position, last.hash, *parameters[1:])
        folded = await self.fold(connection, members, page, events)
        with translating():
            # Before the rows: see advance_projections in schema.sql.
            await folded.write_after(connection, query, parameters)
        folded.keep()

    async def fold(
        self,
        connection: Connection,
        members: Sequence[Projection],
        page: Sequence[Recorded],
        events: Sequence[AnyEvent],
    ) -> FoldedPage:
        """Folds consecutive events, and leaves it to the caller to write and keep what comes of it.

        The page before must be written and kept by then.
        """
        handling = self._by_kind(members)
        await self._fetch(connection, handling, events)
        folded = FoldedPage(self._caches)
        view = _View(folded)
        for event, recorded in zip(events, page, strict=True):
            try:
                for handler in handling[type(event)].handlers:
                    handler(view, event, recorded)
            except Exception as fault:
                raise LogNotUnderstood(
                    f"at position {recorded.position}, {type(fault).__name__}: {fault}", recorded.position
                ) from fault
        return folded

    async def _fetch(
        self,
        connection: Connection,
        handling: Mapping[type[Event], _Handling],
        events: Sequence[AnyEvent],
    ) -> None:
        """Brings every row that the page is going to read into the caches."""
        wanted: defaultdict[Table[Any, Any], set[Any]] = defaultdict(set)
        for event in events:
            _, touches, touches_several = handling[type(event)]
            for table, at_hand, key_of in touches:
                key = key_of(event)
                if key not in at_hand and key is not None:
                    wanted[table].add(key)
            for several in touches_several:
                at_hand = self._caches[several.table.name]
                for key in several.keys(event):
                    if key not in at_hand:
                        wanted[several.table].add(key)
        for table, keys in wanted.items():
            cache = self._caches[table.name]
            for row in await storage.load(connection, table, list(keys)):
                cache[table.key_of(row)] = row

    def _by_kind(self, members: Sequence[Projection]) -> Mapping[type[Event], _Handling]:
        """What each kind of event sets off in these projections: looked up once, not at every event."""
        names = tuple(member.name for member in members)
        if names not in self._handling:
            entries = {
                kind: [member.handlers[kind] for member in members if kind in member.handlers]
                for kind in codec.EVENT_TYPES.values()
            }
            self._handling[names] = {kind: self._handled(found) for kind, found in entries.items()}
        return self._handling[names]

    def _handled(self, entries: Sequence[tuple[Handler, Sequence[Touched]]]) -> _Handling:
        touches = [touched for _, its in entries for touched in its]
        return _Handling(
            tuple(handler for handler, _ in entries),
            tuple((one.table, self._caches[one.table.name], one.key) for one in touches if not one.several),
            tuple(some for some in touches if some.several),
        )


async def decoded(
    connection: Connection, page: Sequence[Recorded], keyring: Keyring | None = None
) -> list[AnyEvent]:
    """The events of a page of stored ones; see `eventstore.sealing.reveal` for the arguments.

    Raises:
        UnknownEventType, UnreadableEvent: one of them cannot be read.
    """
    events: list[AnyEvent] = []
    # Answers are nobody's rows, so nobody needs to read them.
    shown = await sealing.reveal(connection, page, keyring, veiled=(RequestAnswered.type,))
    for start in range(0, len(shown), _DECODED_AT_ONCE):
        events += [codec.decode(recorded) for recorded in shown[start : start + _DECODED_AT_ONCE]]
        await asyncio.sleep(0)
    return events

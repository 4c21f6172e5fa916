"""Folds pages of the log into the read tables, each page and its position in one transaction.

The tables are those that come first on the connection's search path: the live ones for the projector, the
session's own temporary ones for a replay or a verification (`projections.refold`). Rows stay cached between
pages, so a folder serves only one set of tables.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from eventstore import codec, sealing
from eventstore.errors import LogNotUnderstood
from eventstore.events import RequestAnswered
from eventstore.translation import translating
from projections import storage
from projections.projection import Handler, RowsRead, Table
from projections.row_cache import FoldedPage, RowCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent, Event
    from eventstore.keys import Keyring
    from eventstore.recorded import AnyRecorded, Recorded
    from projections.projection import Projection

_ADVANCE = "SELECT advance_projections(%s, %s, %s, %s)"
# No projection is at -1: if the log has another event there, this raises as if a projection were elsewhere.
_ADVANCE_IF_SO = """
    SELECT advance_projections(
        %s, CASE WHEN (SELECT hash FROM events WHERE position = %s) = %s THEN %s::bigint ELSE -1 END, %s, %s
    )
"""

_DECODE_SLICE_EVENTS = 500
"""How many events are decoded before yielding to other tasks: a whole page would keep callers waiting."""

Wanted = dict["Table[Any, Any]", "set[Any]"]
"""Keys of rows, by table."""


class _View:
    """What handlers get while a page is folded. It is called for every row: a bare dictionary lookup."""

    def __init__(self, folded: FoldedPage) -> None:
        self.rows: Any = folded.__getitem__


class _Handling(NamedTuple):
    """The handlers of a kind of event, and the rows that they read."""

    handlers: tuple[Handler, ...]
    reads: tuple[tuple[Table[Any, Any], RowCache, set[Any], Callable[[Any], Any]], ...]
    """For each row that a handler reads: the table, its cache, the keys of rows that the page creates, and
    how to get the key from the event."""
    touches_several: tuple[RowsRead, ...]
    creates: tuple[tuple[set[Any], Callable[[Any], Any]], ...]
    """For each new row: where its key is noted, and how to get the key from the event."""

    @property
    def is_asking(self) -> bool:
        """Whether rows may have to be fetched for this kind of event."""
        return bool(self.reads or self.touches_several)


class PageFolder:
    """Folds pages into one set of tables.

    `generation` is that of the tables when the caller read it from `projections`; `keyring` caches the keys
    of sealed payloads. `empty` says that the tables have no rows yet: then no row need be fetched from the
    database as long as all rows of its table are cached.
    """

    def __init__(self, generation: int = 1, keyring: Keyring | None = None, *, empty: bool = False) -> None:
        self._generation = generation
        self._keyring = keyring
        self._empty = empty
        self._evicted: set[str] = set()
        """Tables that were empty, and from whose cache rows have been evicted since."""
        self._handling: dict[tuple[str, ...], Mapping[type[Event], _Handling]] = {}
        # By table, the keys of the rows that the page creates.
        self._made: defaultdict[str, set[Any]] = defaultdict(set)
        # Only of tables that handlers read: most rows are written and never read again.
        self._caches: defaultdict[str, RowCache] = defaultdict(RowCache)

    async def advance(
        self,
        connection: Connection,
        members: Sequence[Projection],
        page: Sequence[Recorded],
        events: Sequence[AnyEvent] | None = None,
    ) -> None:
        """Fold consecutive events into the tables of projections whose position is just before them.

        Args:
            connection: in autocommit mode; the tables are those that come first on its search path.
            members: the projections.
            page: the events as stored.
            events: the decoded events, if the page was not read from the log. Then nothing is written
                unless the log has this page.

        Raises:
            StoreBusy: a projection is at another position, its tables were replaced, or the log has another
                page there; nothing was written.
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
        await self.fetch(connection, self.wanted(members, events))
        folded = self.fold(members, page, events)
        with translating():
            # The query comes before the rows: see advance_projections in schema.sql.
            await folded.write(connection, query, parameters)
        self.keep(folded)

    def fold(
        self, members: Sequence[Projection], page: Sequence[AnyRecorded], events: Sequence[AnyEvent]
    ) -> FoldedPage:
        """Fold consecutive events; the caller then writes and keeps the result.

        The page before must have been kept, and what is `wanted` fetched.
        """
        handling = self._by_kind(members)
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

    def wanted(self, members: Sequence[Projection], events: Sequence[AnyEvent]) -> Wanted:
        """Return the keys of all rows that a page is going to read and that are not cached, by table."""
        wanted: Wanted = {}
        handling = self._by_kind(members)
        if not any(handling[kind].is_asking for kind in set(map(type, events))):
            return wanted
        for made in self._made.values():
            made.clear()
        for event in events:
            _, reads, touches_several, creates = handling[type(event)]
            for made, key_of in creates:
                made.add(key_of(event))
            for table, cache, made, key_of in reads:
                key = key_of(event)
                if key not in cache and key not in made and key is not None:
                    wanted.setdefault(table, set()).add(key)
            for several in touches_several:
                name = several.table.name
                cache, made = self._caches[name], self._made[name]
                for key in several.keys(event):
                    if key not in cache and key not in made:
                        wanted.setdefault(several.table, set()).add(key)
        return wanted

    async def fetch(self, connection: Connection, wanted: Wanted) -> None:
        """Fetch rows into the cache. Everything folded before must have been written."""
        for table, keys in wanted.items():
            cache = self._caches[table.name]
            for row in await storage.load(connection, table, list(keys)):
                cache.add(table, row)

    def keep(self, folded: FoldedPage) -> None:
        """Cache what a page changed for the next one."""
        evicted = {rows.table.name for rows in folded.values() if not rows.keep()}
        if self._empty and not evicted <= self._evicted:
            self._evicted |= evicted
            self._handling.clear()
        for cache in self._caches.values():
            cache.end_page()

    def _by_kind(self, members: Sequence[Projection]) -> Mapping[type[Event], _Handling]:
        """Return how these projections handle each kind of event: computed once, not for every event."""
        names = tuple(member.name for member in members)
        if names not in self._handling:
            for touched in chain.from_iterable(member.touched() for member in members):
                cache = self._caches[touched.table.name]
                cache.is_lasting = cache.is_lasting or not touched.several
            self._handling[names] = {
                kind: self._handling_of(
                    [member.handlers[kind] for member in members if kind in member.handlers],
                    [made for member in members for made in member.creates.get(kind, ())],
                )
                for kind in codec.EVENT_TYPES.values()
            }
        return self._handling[names]

    def _handling_of(
        self, entries: Sequence[tuple[Handler, Sequence[RowsRead]]], creates: Sequence[RowsRead]
    ) -> _Handling:
        asked = [touched for _, key_in in entries for touched in key_in if self._may_need_fetching(touched)]
        return _Handling(
            tuple(handler for handler, _ in entries),
            tuple(
                (one.table, self._caches[one.table.name], self._made[one.table.name], one.key)
                for one in asked
                if not one.several
            ),
            tuple(some for some in asked if some.several),
            tuple((self._made[one.table.name], one.key) for one in creates),
        )

    def _may_need_fetching(self, touched: RowsRead) -> bool:
        """Whether the database may have such rows that are not cached."""
        name = touched.table.name
        return not self._empty or name in self._evicted or not self._caches[name].is_lasting


async def decoded(
    connection: Connection, page: Sequence[Recorded], keyring: Keyring | None
) -> list[AnyEvent]:
    """Decode a page of stored events; see `eventstore.sealing.reveal` for the arguments.

    Raises:
        UnknownEventType, UnreadableEvent: one of them cannot be read.
    """
    # Answers affect no rows, so they need not be decrypted.
    return await decoded_as_it_is(
        await sealing.reveal(connection, page, keyring, erased_types=(RequestAnswered.type,))
    )


async def decoded_as_it_is(page: Sequence[AnyRecorded]) -> list[AnyEvent]:
    """Decode a page of readable events: none is sealed, or all were decrypted."""
    events: list[AnyEvent] = []
    for start in range(0, len(page), _DECODE_SLICE_EVENTS):
        events += [codec.decode(recorded) for recorded in page[start : start + _DECODE_SLICE_EVENTS]]
        await asyncio.sleep(0)
    return events

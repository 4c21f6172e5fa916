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

RowKeys = dict["Table[Any, Any]", "set[Any]"]
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
    reads_several: tuple[RowsRead, ...]
    creates: tuple[tuple[set[Any], Callable[[Any], Any]], ...]
    """For each new row: where its key is noted, and how to get the key from the event."""

    @property
    def may_fetch(self) -> bool:
        """Whether rows may have to be fetched for this kind of event."""
        return bool(self.reads or self.reads_several)


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
        self._handling_by_members: dict[tuple[str, ...], Mapping[type[Event], _Handling]] = {}
        # By table, the keys of the rows that the page creates.
        self._created_keys: defaultdict[str, set[Any]] = defaultdict(set)
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
            events = await decode_page(connection, page, self._keyring)
        else:
            query = _ADVANCE_IF_SO
            parameters = (names, last.position, last.hash, *parameters[1:])
        await self.fetch(connection, self.keys_to_fetch(members, events))
        folded = self.fold(members, page, events)
        with translating():
            # The query comes before the rows: see advance_projections in schema.sql.
            await folded.write(connection, query, parameters)
        self.add_to_cache(folded)

    def fold(
        self, members: Sequence[Projection], page: Sequence[AnyRecorded], events: Sequence[AnyEvent]
    ) -> FoldedPage:
        """Fold consecutive events; the caller then writes the result and adds it to the cache.

        The page before must be in the cache, and the rows of `keys_to_fetch` too.
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

    def keys_to_fetch(self, members: Sequence[Projection], events: Sequence[AnyEvent]) -> RowKeys:
        """Return the keys of all rows that a page is going to read and that are not cached, by table."""
        row_keys: RowKeys = {}
        handling = self._by_kind(members)
        if not any(handling[kind].may_fetch for kind in set(map(type, events))):
            return row_keys
        for created in self._created_keys.values():
            created.clear()
        for event in events:
            _, reads, reads_several, creates = handling[type(event)]
            for created, key_of in creates:
                created.add(key_of(event))
            for table, cache, created, key_of in reads:
                key = key_of(event)
                if key not in cache and key not in created and key is not None:
                    row_keys.setdefault(table, set()).add(key)
            for several in reads_several:
                name = several.table.name
                cache, created = self._caches[name], self._created_keys[name]
                for key in several.keys(event):
                    if key not in cache and key not in created:
                        row_keys.setdefault(several.table, set()).add(key)
        return row_keys

    async def fetch(self, connection: Connection, row_keys: RowKeys) -> None:
        """Fetch rows into the cache. Everything folded before must have been written."""
        for table, keys in row_keys.items():
            cache = self._caches[table.name]
            for row in await storage.load(connection, table, list(keys)):
                cache.add(table, row)

    def add_to_cache(self, folded: FoldedPage) -> None:
        """Cache what a page changed for the next one."""
        evicted = {rows.table.name for rows in folded.values() if not rows.add_to_cache()}
        if self._empty and not evicted <= self._evicted:
            self._evicted |= evicted
            self._handling_by_members.clear()
        for cache in self._caches.values():
            cache.end_page()

    def _by_kind(self, members: Sequence[Projection]) -> Mapping[type[Event], _Handling]:
        """Return how these projections handle each kind of event: computed once, not for every event."""
        names = tuple(member.name for member in members)
        if names not in self._handling_by_members:
            for row_reads in chain.from_iterable(member.row_reads() for member in members):
                cache = self._caches[row_reads.table.name]
                cache.keeps_changes = cache.keeps_changes or not row_reads.several
            self._handling_by_members[names] = {
                kind: self._handling_of(
                    [member.handlers[kind] for member in members if kind in member.handlers],
                    [created for member in members for created in member.creates.get(kind, ())],
                )
                for kind in codec.EVENT_TYPES.values()
            }
        return self._handling_by_members[names]

    def _handling_of(
        self, entries: Sequence[tuple[Handler, Sequence[RowsRead]]], creates: Sequence[RowsRead]
    ) -> _Handling:
        asked = [
            row_reads for _, key_in in entries for row_reads in key_in if self._may_need_fetching(row_reads)
        ]
        return _Handling(
            tuple(handler for handler, _ in entries),
            tuple(
                (one.table, self._caches[one.table.name], self._created_keys[one.table.name], one.key)
                for one in asked
                if not one.several
            ),
            tuple(some for some in asked if some.several),
            tuple((self._created_keys[one.table.name], one.key) for one in creates),
        )

    def _may_need_fetching(self, row_reads: RowsRead) -> bool:
        """Whether the database may have such rows that are not cached."""
        name = row_reads.table.name
        return not self._empty or name in self._evicted or not self._caches[name].keeps_changes


async def decode_page(
    connection: Connection, page: Sequence[Recorded], keyring: Keyring | None
) -> list[AnyEvent]:
    """Decode a page of stored events; see `eventstore.sealing.reveal` for the arguments.

    Raises:
        UnknownEventType, UnreadableEvent: one of them cannot be read.
    """
    # Answers affect no rows, so they need not be decrypted.
    return await decode_readable_page(
        await sealing.reveal(connection, page, keyring, erased_types=(RequestAnswered.type,))
    )


async def decode_readable_page(page: Sequence[AnyRecorded]) -> list[AnyEvent]:
    """Decode a page of readable events: none is sealed, or all were decrypted."""
    events: list[AnyEvent] = []
    for start in range(0, len(page), _DECODE_SLICE_EVENTS):
        events += [codec.decode(recorded) for recorded in page[start : start + _DECODE_SLICE_EVENTS]]
        await asyncio.sleep(0)
    return events

"""Folds pages of the log into the read tables, a page and its position in one transaction.

The tables are those that come first on the connection's search path: the live ones for the projector, a
session's own temporary ones for a replay or a verification (`projections.refold`). Rows stay at hand
between pages, so one folder is for one set of tables.
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
from projections.at_hand import AtHand, FoldedPage
from projections.projection import Handler, Table, Touched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent, Event
    from eventstore.keys import Keyring
    from eventstore.recorded import AnyRecorded, Recorded
    from projections.projection import Projection

_ADVANCE = "SELECT advance_projections(%s, %s, %s, %s)"
# No projection is at -1: where the log has another event there, this raises as where one stands elsewhere.
_ADVANCE_IF_SO = """
    SELECT advance_projections(
        %s, CASE WHEN (SELECT hash FROM events WHERE position = %s) = %s THEN %s::bigint ELSE -1 END, %s, %s
    )
"""

_DECODED_AT_ONCE = 500
"""After so many events others get their turn: for a service with callers a page takes too long."""


Wanted = dict["Table[Any, Any]", "set[Any]"]
"""Keys of rows, by table."""


class _View:
    """What handlers get while a page is folded. It is asked for every row, so it asks the dictionary."""

    def __init__(self, folded: FoldedPage) -> None:
        self.rows: Any = folded.__getitem__


class _Handling(NamedTuple):
    """What a kind of event sets off, and what is read for it."""

    handlers: tuple[Handler, ...]
    touches: tuple[tuple[Table[Any, Any], AtHand, set[Any], Callable[[Any], Any]], ...]
    """Of each row that a handler reads: the table, its rows at hand, those that the page makes, and how the
    event names it."""
    touches_several: tuple[Touched, ...]
    makes: tuple[tuple[set[Any], Callable[[Any], Any]], ...]
    """Of each row that is not there before: where that is noted, and how the event names it."""

    @property
    def is_asking(self) -> bool:
        """Whether rows may have to be fetched for it."""
        return bool(self.touches or self.touches_several)


class PageFolder:
    """Folds pages into one set of tables.

    `generation` is that of the tables as `projections` had it when the caller looked; `keyring` holds the
    keys of sealed payloads that are at hand already. `empty` says that the tables have no rows yet: then
    the database need not be asked for a row, as long as all rows of its table are at hand.
    """

    def __init__(self, generation: int = 1, keyring: Keyring | None = None, *, empty: bool = False) -> None:
        self._generation = generation
        self._keyring = keyring
        self._empty = empty
        self._let_go: set[str] = set()
        """Tables that were empty, and by now have rows that are not at hand any more."""
        self._handling: dict[tuple[str, ...], Mapping[type[Event], _Handling]] = {}
        # Of each table, the keys of those that the page makes.
        self._made: defaultdict[str, set[Any]] = defaultdict(set)
        # Only of tables that handlers read: most rows are written and never looked at again.
        self._caches: defaultdict[str, AtHand] = defaultdict(AtHand)

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
        await self.fetch(connection, self.wanted(members, events))
        folded = self.fold(members, page, events)
        with translating():
            # Before the rows: see advance_projections in schema.sql.
            await folded.write(connection, query, parameters)
        self.keep(folded)

    def fold(
        self, members: Sequence[Projection], page: Sequence[AnyRecorded], events: Sequence[AnyEvent]
    ) -> FoldedPage:
        """Folds consecutive events, and leaves it to the caller to write and keep what comes of it.

        The page before must be kept by then, and what is `wanted` fetched.
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
        """The keys of all rows that a page is going to read and that are not at hand, by table."""
        wanted: Wanted = {}
        handling = self._by_kind(members)
        if not any(handling[kind].is_asking for kind in set(map(type, events))):
            return wanted
        for made in self._made.values():
            made.clear()
        for event in events:
            _, touches, touches_several, makes = handling[type(event)]
            for made, key_of in makes:
                made.add(key_of(event))
            for table, at_hand, made, key_of in touches:
                key = key_of(event)
                if key not in at_hand and key not in made and key is not None:
                    wanted.setdefault(table, set()).add(key)
            for several in touches_several:
                name = several.table.name
                at_hand, made = self._caches[name], self._made[name]
                for key in several.keys(event):
                    if key not in at_hand and key not in made:
                        wanted.setdefault(several.table, set()).add(key)
        return wanted

    async def fetch(self, connection: Connection, wanted: Wanted) -> None:
        """Brings rows to hand. All that was folded before must be written by then."""
        for table, keys in wanted.items():
            cache = self._caches[table.name]
            for row in await storage.load(connection, table, list(keys)):
                cache[table.key_of(row)] = row

    def keep(self, folded: FoldedPage) -> None:
        """Has what a page changed at hand for the next one."""
        let_go = {rows.table.name for rows in folded.values() if not rows.keep()}
        if self._empty and not let_go <= self._let_go:
            self._let_go |= let_go
            self._handling.clear()
        for cache in self._caches.values():
            if not cache.is_lasting:
                cache.clear()

    def _by_kind(self, members: Sequence[Projection]) -> Mapping[type[Event], _Handling]:
        """What each kind of event sets off in these projections: looked up once, not at every event."""
        names = tuple(member.name for member in members)
        if names not in self._handling:
            for touched in chain.from_iterable(member.touched() for member in members):
                cache = self._caches[touched.table.name]
                cache.is_lasting = cache.is_lasting or not touched.several
            self._handling[names] = {
                kind: self._handled(
                    [member.handlers[kind] for member in members if kind in member.handlers],
                    [made for member in members for made in member.makes.get(kind, ())],
                )
                for kind in codec.EVENT_TYPES.values()
            }
        return self._handling[names]

    def _handled(
        self, entries: Sequence[tuple[Handler, Sequence[Touched]]], makes: Sequence[Touched]
    ) -> _Handling:
        asked = [touched for _, its in entries for touched in its if self._may_be_elsewhere(touched)]
        return _Handling(
            tuple(handler for handler, _ in entries),
            tuple(
                (one.table, self._caches[one.table.name], self._made[one.table.name], one.key)
                for one in asked
                if not one.several
            ),
            tuple(some for some in asked if some.several),
            tuple((self._made[one.table.name], one.key) for one in makes),
        )

    def _may_be_elsewhere(self, touched: Touched) -> bool:
        """Whether the database can have such rows that are not at hand."""
        name = touched.table.name
        return not self._empty or name in self._let_go or not self._caches[name].is_lasting


async def decoded(
    connection: Connection, page: Sequence[Recorded], keyring: Keyring | None
) -> list[AnyEvent]:
    """The events of a page of stored ones; see `eventstore.sealing.reveal` for the arguments.

    Raises:
        UnknownEventType, UnreadableEvent: one of them cannot be read.
    """
    # Answers are nobody's rows, so nobody needs to read them.
    return await decoded_as_it_is(
        await sealing.reveal(connection, page, keyring, veiled=(RequestAnswered.type,))
    )


async def decoded_as_it_is(page: Sequence[AnyRecorded]) -> list[AnyEvent]:
    """The events of a page that is readable: none is sealed, or all were revealed."""
    events: list[AnyEvent] = []
    for start in range(0, len(page), _DECODED_AT_ONCE):
        events += [codec.decode(recorded) for recorded in page[start : start + _DECODED_AT_ONCE]]
        await asyncio.sleep(0)
    return events

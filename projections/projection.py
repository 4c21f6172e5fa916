"""What every projection consists of: tables, and handlers for what each kind of event does to their rows.

What an event does is written once, as a handler of a `Projection`. A handler reads and writes rows through
a `View` and never knows what is behind it: the decision state in memory, a page of rows on their way into
the read tables, or the squad as it was last Tuesday.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct, structs

if TYPE_CHECKING:
    from typing import Self

    from eventstore.events import AnyEvent, Event
    from eventstore.recorded import AnyRecorded

K = TypeVar("K")
R = TypeVar("R", bound="Row")
K_contra = TypeVar("K_contra", contravariant=True)


class Row(Struct, frozen=True, gc=False):
    """A row of a read table. Its fields are the columns, in their order."""

    if TYPE_CHECKING:

        def replaced(self, **values: Any) -> Self:
            """Return the row with other values in these columns."""

    else:
        # A wrapper method would take four times as long, and handlers do little else.
        replaced = Struct.__replace__

    def asdict(self) -> dict[str, Any]:
        """Return the values by column."""
        return structs.asdict(self)


@dataclass(frozen=True, eq=False)
class Table(Generic[K, R]):
    """A read table: its row type, its key and column types."""

    name: str
    row: type[R]
    key: tuple[str, ...]
    types: tuple[str, ...]
    """The Postgres type of each column, in the order of the row's fields."""
    large_columns: tuple[str, ...] = ()
    """Columns that clients can fill with large values, of a table whose rows handlers read."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, in the order of the row's fields."""
        return self.row.__struct_fields__

    def key_of(self, row: R) -> K:
        """Return the row's key: one value, or a tuple if the key has several columns."""
        values = tuple(getattr(row, column) for column in self.key)
        return values[0] if len(values) == 1 else values  # type: ignore[return-value]


class Rows(Protocol[K_contra, R]):
    """One table as a handler sees it."""

    def get(self, key: K_contra, /) -> R | None:
        """Return the row, or None if there is none."""

    def put(self, key: K_contra, row: R, /) -> None:
        """Write the row, replacing any with the same key."""


class View(Protocol):
    """All tables as a handler sees them."""

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        """Return one table's rows."""


class MissingRow(Exception):
    """A handler needs a row that does not exist; the log and the tables are inconsistent."""

    def __init__(self, table: Table[Any, Any], key: object) -> None:
        super().__init__(f"{table.name} has no row {key!r}")
        self.table = table


def require(view: View, table: Table[K, R], key: K) -> R:
    """Return the row with this key, which the event refers to.

    Raises:
        MissingRow: there is none.
    """
    row = view.rows(table).get(key)
    if row is None:
        raise MissingRow(table, key)
    return row


class RowsRead(NamedTuple):
    """Which rows of a table a handler reads for an event."""

    table: Table[Any, Any]
    key: Callable[[Any], Any]
    """Given the event, returns the row's key, or None if it has none; if `several`, all the keys."""
    several: bool = False

    def keys(self, event: AnyEvent) -> Iterable[Any]:
        """Return the keys of these rows."""
        found = self.key(event)
        if self.several:
            return found  # type: ignore[no-any-return]
        return () if found is None else (found,)


def key_in(table: Table[Any, Any], *fields: str) -> RowsRead:
    """The row whose key is in these fields of the event; none if it is None."""
    return RowsRead(table, attrgetter(*fields))


def keys_in(table: Table[Any, Any], field: str) -> RowsRead:
    """The rows whose keys are listed in that field of the event."""
    return RowsRead(table, attrgetter(field), several=True)


def fixed_key(table: Table[Any, Any], key: str) -> RowsRead:
    """The row with that key, whatever the event says."""
    return RowsRead(table, lambda _: key)


Handler = Callable[[View, Any, "AnyRecorded"], None]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True)
class Projection:
    """A named set of tables that are kept by the same handlers and share one position in the log."""

    name: str
    tables: tuple[Table[Any, Any], ...]
    fold_version: int = 1
    """Incremented whenever a handler's meaning changes; tables folded by another version are rebuilt."""
    handlers: dict[type[Event], tuple[Handler, tuple[RowsRead, ...]]] = field(default_factory=dict)
    creates: dict[type[Event], tuple[RowsRead, ...]] = field(default_factory=dict)
    """See `on`."""

    def on(
        self, *kinds: type[Event], reads: tuple[RowsRead, ...] = (), creates: tuple[RowsRead, ...] = ()
    ) -> Callable[[H], H]:
        """Declare a handler for these kinds of event.

        Args:
            kinds: each may have at most one handler.
            reads: the rows that the handler reads, so that they can be fetched first.
            creates: new rows that later events read, so that they need not be fetched.
        """

        def declare(handler: H) -> H:
            for kind in kinds:
                if kind in self.handlers:
                    raise ValueError(f"{self.name} already has a handler for {kind.type}")
                self.handlers[kind] = (handler, reads)
                self.creates[kind] = creates
            return handler

        return declare

    def apply(self, view: View, event: AnyEvent, recorded: AnyRecorded) -> None:
        """Apply the event to this projection's rows."""
        if entry := self.handlers.get(type(event)):
            entry[0](view, event, recorded)

    def row_reads(self) -> Iterable[RowsRead]:
        """Return everything that its handlers read."""
        return [row_reads for _, reads in self.handlers.values() for row_reads in reads]

    def reads(self, event: AnyEvent) -> Iterable[tuple[Table[Any, Any], Any]]:
        """Return the table and key of each row that `apply` is going to read."""
        _, reads = self.handlers.get(type(event), (None, ()))
        return [(row_reads.table, key) for row_reads in reads for key in row_reads.keys(event)]

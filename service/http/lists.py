"""Lists from the read tables: paged by position in either direction, filtered by equality and by time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import orjson
from psycopg import sql
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from eventstore import lookup
from projections import storage
from service.documented import Documented
from service.http import json
from service.http.context import parse_path, parse_query
from service.http.problems import Problem
from service.http.reply import Reply, respond
from service.values import Id, Moment, Name

if TYPE_CHECKING:
    from aiohttp import web

    from eventstore.connection import Connection
    from projections.projection import Projection, Table
    from service.http.context import Services

MAX_PAGE = 1_000

PAGE_BYTES = 8 * 1024 * 1024
"""A page ends at this size even if it has fewer entries than its limit. Each can be as large as a body."""

_INITIAL_ENTRIES = 21
"""How many entries are read before their size is known."""

_MAX_ENTRIES = 80
"""How many entries are read at once: the next ones may each be a thousand times as large as the previous.
Together with the first ones, that is the default limit of a page, plus one."""

_MAX_POSITION = 2**63 - 1
_MICROSECOND = timedelta(microseconds=1)
_ID: TypeAdapter[str] = TypeAdapter(Id)

PositionOrZero = Annotated[int, Field(ge=0, le=_MAX_POSITION)]
"""A position in the log, or 0, which is before the first one."""


class Query(Documented):
    """The query parameters of every GET."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_position: PositionOrZero | None = None
    """Wait, for at most 5 seconds, until the answer covers this position."""


class PageQuery(Query):
    """The query parameters of every list."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    """The maximum number of entries on a page."""
    after: PositionOrZero = 0
    """The `next` of the previous page."""


class ListQuery(PageQuery):
    """The query parameters of a list in the order of the log; further fields are filters by equality."""

    order: Literal["asc", "desc"] = "asc"
    """`desc` lists the newest entries first; `next` then leads to older ones."""
    since: Moment | None = None
    """Only entries that were first recorded at this time or later. In a URL, write the + of a time zone as
    %2B."""
    until: Moment | None = None
    """Only entries that were first recorded before this time."""

    @property
    def newest_first(self) -> bool:
        """Whether the list is read from its end."""
        return self.order == "desc"

    @property
    def start(self) -> int:
        """The position after which the page begins, or before which, if the newest come first."""
        return self.after or (_MAX_POSITION if self.newest_first else 0)


class PageByName(Query):
    """The query parameters of a list by name."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    """The maximum number of entries on a page."""
    after: Name | None = None
    """The `next` of the previous page."""


def _split(value: object) -> object:
    return tuple(value.split(",")) if isinstance(value, str) else value


C = TypeVar("C")
E = TypeVar("E")
Fetch = Callable[[C, int], Awaitable[list[dict[str, Any]]]]
"""Reads the entries that follow a position, or another cursor, in a list, up to a maximum number."""

OneOf = Annotated[
    tuple[E, ...], Field(max_length=20, json_schema_extra={"minItems": 1}), BeforeValidator(_split)
]
"""A filter that takes several values, separated by commas. Even an empty string is one value."""


def _empty_or_valid(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    return value if value == "" else validate(value)


NameOrNobody = Annotated[Name, WrapValidator(_empty_or_valid, json_schema_input_type=Name | Literal[""])]
"""A filter by the name of an agent; an empty value selects the rows that name nobody."""


async def page_of_rows(
    services: Services,
    request: web.Request,
    query_model: type[ListQuery],
    projection: Projection,
    table: Table[Any, Any],
    *,
    order: str = "position",
    conditions: sql.Composable | None = None,
    **parameters: Any,
) -> Reply:
    """Answer with a page of a table.

    Args:
        services: the running parts.
        request: the request, for its query string.
        query_model: its fields beyond those of every list are columns to filter by.
        projection: the projection that must cover `min_position`.
        table: the table to read.
        order: the column that orders the list and that `after` refers to: the position at which a row was
            first recorded.
        conditions: further conditions.
        parameters: the parameters of `conditions`.
    """
    query = parse_query(query_model, request)
    named = query.model_dump(exclude_none=True)
    filters = {name: value for name, value in named.items() if name not in ListQuery.model_fields}
    clauses: list[sql.Composable] = [
        sql.SQL("{0} > %(low)s AND {0} < %(high)s").format(sql.Identifier(order))
    ]
    ordering = [sql.Identifier(order)]
    for name, value in filters.items():
        if value == "":
            clauses.append(sql.SQL("{} IS NULL").format(sql.Identifier(name)))
            # Unlike with "=", the planner does not see that the column is constant: only in this order does
            # the column's index yield the rows.
            ordering.insert(0, sql.Identifier(name))
            continue
        if isinstance(value, tuple) and len(value) == 1:
            # An index yields the rows of one value in order; those of several must be sorted.
            (value,) = value
        parameters[name] = list(value) if isinstance(value, tuple) else value
        comparison = "{} = ANY({})" if isinstance(value, tuple) else "{} = {}"
        clauses.append(sql.SQL(comparison).format(sql.Identifier(name), sql.Placeholder(name)))
    if conditions is not None:
        clauses.append(conditions)
    direction = sql.SQL(" DESC" if query.newest_first else "")
    where = sql.SQL("WHERE {} ORDER BY {} LIMIT %(limit)s").format(
        sql.SQL(" AND ").join(clauses), sql.SQL(", ").join(column + direction for column in ordering)
    )
    async with services.tables.covering(projection, query.min_position) as connection:
        low, high = await _bounds(connection, query)

        async def fetch(after: int, count: int) -> list[dict[str, Any]]:
            left = {"low": low, "high": after} if query.newest_first else {"low": after, "high": high}
            rows = await storage.select(connection, table, where, {**parameters, **left, "limit": count})
            return [row.asdict() for row in rows]

        start = min(query.start, high) if query.newest_first else max(query.start, low)
        shown = await read_page(fetch, start, query.limit, order)
    return respond(200, shown)


async def _bounds(connection: Connection, query: ListQuery) -> tuple[int, int]:
    """Return the positions between which `since` and `until` are, both exclusive."""
    low, high = 0, _MAX_POSITION
    if query.since is not None:
        low = await lookup.position_at(connection, query.since - _MICROSECOND)
    if query.until is not None:
        high = await lookup.position_at(connection, query.until - _MICROSECOND) + 1
    return low, high


async def read_page(fetch: Fetch[C], after: C, limit: int, order: str = "position") -> dict[str, Any]:
    """Read a page in portions and return it in its envelope, cut short if it gets too large.

    Args:
        fetch: reads the entries that follow a position in the list.
        after: the position after which the page begins, in the order of the list.
        limit: the maximum number of entries.
        order: the field that `after` refers to.
    """
    items: list[orjson.Fragment] = []
    size, count = 0, _INITIAL_ENTRIES
    while True:
        page_limit = min(count, limit + 1 - len(items))
        entries = await fetch(after, page_limit)
        for entry in entries:
            if len(items) == limit or size >= PAGE_BYTES:
                return {"items": items, "next": after}
            text = json.dumps(entry)
            size += len(text)
            items.append(orjson.Fragment(text))
            after = entry[order]
        if len(entries) < page_limit:
            return {"items": items, "next": None}
        # As many as fit if they are like those so far; at least one, which shows whether there are more.
        count = min(max(1, (PAGE_BYTES - size) * len(items) // size), _MAX_ENTRIES)


def page(entries: Iterable[dict[str, Any]], limit: int, order: str = "position") -> dict[str, Any]:
    """Return a page of entries in memory in its envelope, cut short if it gets too large.

    Args:
        entries: the page's entries and those after it. At most one more than the page shows is consumed.
        limit: the maximum number of entries.
        order: the field that `after` refers to.
    """
    items, last = fitting(entries, limit, PAGE_BYTES)
    return {"items": items, "next": last[order] if last else None}


def fitting(
    entries: Iterable[dict[str, Any]], limit: int, max_bytes: int
) -> tuple[list[orjson.Fragment], dict[str, Any] | None]:
    """Return the entries that fit, as JSON, and the last of these if there are more.

    Args:
        entries: the entries.
        limit: how many to stop after.
        max_bytes: how many bytes to stop after.
    """
    items: list[orjson.Fragment] = []
    size, last = 0, None
    for entry in entries:
        if len(items) == limit or size >= max_bytes:
            return items, last
        text = json.dumps(entry)
        size += len(text)
        items.append(orjson.Fragment(text))
        last = entry
    return items, None


async def one_row(
    services: Services,
    request: web.Request,
    projection: Projection,
    table: Table[Any, Any],
    missing: str,
    what: str,
    *,
    check: Callable[[Any], None] = lambda row: None,
    more: Callable[[Connection, Any], Awaitable[dict[str, Any]]] | None = None,
) -> Reply:
    """Answer with the row whose id is in the path.

    Args:
        services: the running parts.
        request: the request, for its path and query string.
        projection: the projection that must cover `min_position`.
        table: the table to read; its key is `id`.
        missing: the code of the problem if there is no such row.
        what: what to call a row in that problem's detail.
        check: raises a problem if the caller may not see the row.
        more: reads further fields to show with the row.
    """
    query = parse_query(Query, request)
    id_ = parse_path(_ID, request, "id")
    async with services.tables.covering(projection, query.min_position) as connection:
        rows = await storage.load(connection, table, [id_])
        if not rows:
            raise Problem(missing, f"there is no {what} {id_}")
        check(rows[0])
        further = await more(connection, rows[0]) if more else {}
    return respond(200, {**rows[0].asdict(), **further})

"""Lists out of the read tables: pages by position, filtered by equality."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
from psycopg import sql
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from projections import storage
from service.http import json
from service.http.context import parse_path, parse_query
from service.http.problems import Problem
from service.http.reply import Reply, respond
from service.values import Id, Name

if TYPE_CHECKING:
    from aiohttp import web

    from projections.projection import Projection, Table
    from service.http.context import Services

MAX_PAGE = 1_000

PAGE_BYTES = 8 * 1024 * 1024
"""Where a page ends even before it has as many entries as it may. Each can be as large as a body."""

_FIRST_ENTRIES = 21
"""How many are read before it is known how large they are."""

_MOST_ENTRIES = 80
"""How many are read at once: those that come can each be a thousand times as large as those that came.
With the first ones it is as many as a page has that names no limit, and one."""

_LARGEST_POSITION = 2**63 - 1
_ID: TypeAdapter[str] = TypeAdapter(Id)

Position = Annotated[int, Field(ge=0, le=_LARGEST_POSITION)]


class Query(BaseModel):
    """What every GET takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min_position: Position | None = None
    """Wait, at most 5 seconds, until the answer covers this position."""


class PageQuery(Query):
    """What every list takes; further fields are filters by equality."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    """How many entries a page has at most."""
    after: Position = 0
    """The `next` of the page before."""


class PageByName(Query):
    """What a list by name takes."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    """How many entries a page has at most."""
    after: Name | None = None
    """The `next` of the page before."""


def _split(value: object) -> object:
    return tuple(value.split(",")) if isinstance(value, str) else value


Fetch = Callable[[int, int], Awaitable[list[dict[str, Any]]]]
"""Reads entries of a list: those after a position, so many at most."""

E = TypeVar("E")
OneOf = Annotated[
    tuple[E, ...], Field(max_length=20, json_schema_extra={"minItems": 1}), BeforeValidator(_split)
]
"""A filter that takes several values, separated by commas. Even of an empty text one value is made."""


async def page_of_rows(
    services: Services,
    request: web.Request,
    query_model: type[PageQuery],
    projection: Projection,
    table: Table[Any, Any],
    *,
    order: str = "position",
    conditions: sql.Composable | None = None,
    **parameters: Any,
) -> Reply:
    """Answers a page of a table, the oldest first.

    Args:
        services: the running parts.
        request: whose query string is read.
        query_model: its fields beyond a page's are columns that must equal the given value.
        projection: whose position must cover what the reader wants to see.
        table: which table.
        order: the column that orders the list and that `after` refers to.
        conditions: further conditions; their parameters follow by name.
        parameters: what the conditions name.
    """
    query = parse_query(query_model, request)
    named = query.model_dump(exclude_none=True)
    filters = {name: value for name, value in named.items() if name not in PageQuery.model_fields}
    clauses: list[sql.Composable] = [sql.SQL("{} > %(after)s").format(sql.Identifier(order))]
    for name, value in filters.items():
        if isinstance(value, tuple) and len(value) == 1:
            # An index has the rows of one value in their order; those of several have to be sorted.
            (value,) = value
        parameters[name] = list(value) if isinstance(value, tuple) else value
        comparison = "{} = ANY({})" if isinstance(value, tuple) else "{} = {}"
        clauses.append(sql.SQL(comparison).format(sql.Identifier(name), sql.Placeholder(name)))
    if conditions is not None:
        clauses.append(conditions)
    where = sql.SQL("WHERE {} ORDER BY {} LIMIT %(limit)s").format(
        sql.SQL(" AND ").join(clauses), sql.Identifier(order)
    )
    async with services.tables.covering(projection, query.min_position) as connection:

        async def fetch(after: int, count: int) -> list[dict[str, Any]]:
            values = {**parameters, "after": after, "limit": count}
            rows = await storage.select(connection, table, where, values)
            return [row.asdict() for row in rows]

        shown = await read_page(fetch, query.after, query.limit, order)
    return respond(200, shown)


async def read_page(fetch: Fetch, after: int, limit: int, order: str = "position") -> dict[str, Any]:
    """The envelope of a page that is read bit by bit, and cut short where it gets too large.

    Args:
        fetch: reads so many entries after a position.
        after: where the page begins.
        limit: how many entries it has at most.
        order: the field that `after` refers to.
    """
    items: list[orjson.Fragment] = []
    size, count = 0, _FIRST_ENTRIES
    while True:
        wanted = min(count, limit + 1 - len(items))
        entries = await fetch(after, wanted)
        for entry in entries:
            if len(items) == limit or size >= PAGE_BYTES:
                return {"items": items, "next": after}
            text = json.dumps(entry)
            size += len(text)
            items.append(orjson.Fragment(text))
            after = entry[order]
        if len(entries) < wanted:
            return {"items": items, "next": None}
        # As many as will fit, if they are like those so far; one more tells whether there are any.
        count = min(max(1, (PAGE_BYTES - size) * len(items) // size), _MOST_ENTRIES)


def page(entries: Iterable[dict[str, Any]], limit: int, order: str = "position") -> dict[str, Any]:
    """The envelope of a page of what is at hand, cut short where it gets too large.

    Args:
        entries: from where the page begins. No more of them are asked for than are shown, and one.
        limit: how many it has at most.
        order: the field that `after` refers to.
    """
    items, last = fitting(entries, limit, PAGE_BYTES)
    return {"items": items, "next": last[order] if last else None}


def fitting(
    entries: Iterable[dict[str, Any]], limit: int, most_bytes: int
) -> tuple[list[orjson.Fragment], dict[str, Any] | None]:
    """Entries as JSON, as far as they go, and the last of them where there are more.

    Args:
        entries: what there is.
        limit: after how many to stop.
        most_bytes: after how many bytes to stop.
    """
    items: list[orjson.Fragment] = []
    size, last = 0, None
    for entry in entries:
        if len(items) == limit or size >= most_bytes:
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
) -> Reply:
    """Answers the row whose id stands in the path.

    Args:
        services: the running parts.
        request: whose path and query string are read.
        projection: whose position must cover what the reader wants to see.
        table: which table; its key is `id`.
        missing: the code of the problem where there is no such row.
        what: what a row is, in a person's words.
        check: raises a problem where the caller may not see the row.
    """
    query = parse_query(Query, request)
    id_ = parse_path(_ID, request, "id")
    async with services.tables.covering(projection, query.min_position) as connection:
        rows = await storage.load(connection, table, [id_])
    if not rows:
        raise Problem(missing, f"there is no {what} {id_}")
    check(rows[0])
    return respond(200, rows[0].asdict())

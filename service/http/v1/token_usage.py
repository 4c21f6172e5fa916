"""What the tokens of each budget day were spent on, by agent and by model."""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from psycopg import sql
from pydantic import BeforeValidator, Field, TypeAdapter

from projections import storage
from projections.usage import TOKEN_USAGE, usage
from service.http import answers
from service.http.context import Services, parse_query
from service.http.lists import MAX_PAGE, PAGE_BYTES, NameOrNobody, Query, fitting
from service.http.reply import Reply, respond
from service.http.route import Route
from service.http.scope import Scope
from service.values import Day, Name, check_json

if TYPE_CHECKING:
    from aiohttp import web

Place = tuple[date, str, str]
"""The day, agent and model of an entry."""

_PLACE: TypeAdapter[Place] = TypeAdapter(Place)

_BEGINNING: Place = (date.min, "", "")
"""Before every entry."""

_ROWS = sql.SQL("""
 WHERE (%(since)s::date IS NULL OR day >= %(since)s)
   AND (%(until)s::date IS NULL OR day < %(until)s)
   AND (%(agent)s::text IS NULL OR agent = %(agent)s)
   AND (%(model)s::text IS NULL OR model = %(model)s)
   AND (day, agent, model) > (%(after_day)s, %(after_agent)s, %(after_model)s)
 ORDER BY day, agent, model LIMIT %(limit)s
""")


def _cursor(entry: dict[str, Any]) -> str:
    return urlsafe_b64encode(orjson.dumps([entry["day"], entry["agent"], entry["model"] or ""])).decode()


def _place(cursor: object) -> object:
    """Decode a cursor; what a client sends may be anything."""
    try:
        place = _PLACE.validate_json(b64decode(str(cursor), altchars=b"-_", validate=True), strict=True)
        check_json(list(place[1:]))
    except ValueError as error:
        raise ValueError("must be the `next` of the previous page") from error
    return place


class UsageQuery(Query):
    """Which use of tokens to list."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    """The maximum number of entries on a page."""
    after: Annotated[Place, BeforeValidator(_place, json_schema_input_type=str)] | None = None
    """The `next` of the previous page."""
    since: Day | None = None
    """Only this day and later ones."""
    until: Day | None = None
    """Only days before this one."""
    agent: Name | None = None
    """Only what this agent used."""
    model: NameOrNobody | None = None
    """Only what was spent on this model; an empty value selects what was spent without naming one."""


async def _list(services: Services, request: web.Request) -> Reply:
    query = parse_query(UsageQuery, request)
    day, agent, model = query.after or _BEGINNING
    parameters: dict[str, Any] = {
        **query.model_dump(include={"since", "until", "agent", "model"}),
        "after_day": day,
        "after_agent": agent,
        "after_model": model,
        "limit": query.limit + 1,
    }
    async with services.tables.covering(usage, query.min_position) as connection:
        rows = await storage.select(connection, TOKEN_USAGE, _ROWS, parameters)
    entries = (
        {
            "day": row.day,
            "agent": row.agent,
            "model": row.model or None,
            "tokens": row.tokens,
            "input_tokens": row.input_tokens,
            "output_tokens": row.output_tokens,
        }
        for row in rows
    )
    items, last = fitting(entries, query.limit, PAGE_BYTES)
    return respond(200, {"items": items, "next": _cursor(last) if last else None})


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/budget/usage",
        name="list_token_usage",
        summary="Tokens that were used, by day, agent and model",
        tag="budget",
        scope=Scope.READ,
        handler=_list,
        query=UsageQuery,
        answers={200: answers.page_of(answers.TokenUsage, str)},
        problems=("not_yet",),
    ),
)

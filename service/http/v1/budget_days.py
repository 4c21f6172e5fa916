"""Budget days, past and present: what was spent on each, by the squad and by each agent."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any, Literal, LiteralString

from psycopg.rows import dict_row
from pydantic import Field

from eventstore.translation import translating
from projections.budgets import budgets
from service.http import answers
from service.http.context import Services, parse_query
from service.http.lists import Query, read_page
from service.http.reply import Reply, respond
from service.http.route import Route
from service.http.scope import Scope
from service.values import Day

if TYPE_CHECKING:
    from aiohttp import web

_DAYS: LiteralString = """
SELECT day, total, used, reserved, starts_at, ends_at, closed_at,
       (SELECT coalesce(jsonb_object_agg(agent, jsonb_build_object('used', part.used,
                                                                   'reserved', part.reserved)), '{}')
          FROM budgets AS part WHERE part.day = budget_days.day) AS agents
  FROM budget_days
 WHERE (%(since)s::date IS NULL OR day >= %(since)s)
   AND (%(until)s::date IS NULL OR day < %(until)s)
"""
_FROM_THE_FIRST: LiteralString = """
   AND (%(after)s::date IS NULL OR day > %(after)s)
 ORDER BY day LIMIT %(limit)s
"""
_FROM_THE_LAST: LiteralString = """
   AND (%(after)s::date IS NULL OR day < %(after)s)
 ORDER BY day DESC LIMIT %(limit)s
"""


class DayQuery(Query):
    """Which budget days to list."""

    limit: int = Field(default=31, ge=1, le=366)
    """The maximum number of days on a page."""
    after: Day | None = None
    """The `next` of the previous page."""
    order: Literal["asc", "desc"] = "asc"
    """`desc` lists the latest days first; `next` then leads to earlier ones."""
    since: Day | None = None
    """Only this day and later ones."""
    until: Day | None = None
    """Only days before this one."""


async def _list(services: Services, request: web.Request) -> Reply:
    query = parse_query(DayQuery, request)
    statement = _DAYS + (_FROM_THE_FIRST if query.order == "asc" else _FROM_THE_LAST)
    async with services.tables.covering(budgets, query.min_position) as connection:

        async def fetch(after: date | None, count: int) -> list[dict[str, Any]]:
            named = {"since": query.since, "until": query.until, "after": after, "limit": count}
            with translating():
                cursor = connection.cursor(row_factory=dict_row)
                return await (await cursor.execute(statement, named)).fetchall()

        shown = await read_page(fetch, query.after, query.limit, "day")
    return respond(200, shown)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/budget/days",
        name="list_budget_days",
        summary="Budget days with what was used on each, as a whole and by agent",
        tag="budget",
        scope=Scope.READ,
        handler=_list,
        query=DayQuery,
        answers={200: answers.page_of(answers.BudgetDay, date)},
        problems=("not_yet",),
    ),
)

"""Explanations: why an event happened, for every position of the log."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from service import views
from service.explain import explain
from service.explain.reader import PostgresLogQueries
from service.explain.record import OriginKind
from service.http.answers import Answer
from service.http.context import Services, parse_query
from service.http.lists import PositionOrZero, Query
from service.http.problems import Problem
from service.http.reply import Reply, respond
from service.http.route import Route
from service.http.scope import Scope

if TYPE_CHECKING:
    from aiohttp import web


class Step(Answer):
    """An event in one sentence."""

    position: int
    type: str
    recorded_at: datetime
    sentence: str


class Reason(Answer):
    """One sentence of an explanation, the positions of the events that show it, and what it lists."""

    sentence: str
    positions: list[int]
    items: list[str]


class Origin(Answer):
    """Where something began; `facts` depends on the kind."""

    kind: OriginKind
    reasons: list[Reason]
    facts: dict[str, Any]


class Explanation(Answer):
    """What happened, why, where it came from, what led to it, what became of it and what it led to.

    `causes` is the chain of `caused_by`, nearest first; if it is longer than shown, it continues at
    `causes_go_on_at`. `effects` lists the first ten events that name this one in their `caused_by`;
    `effects_go_on` says whether more were found. `outcome` says what became of something that had not
    ended with this event. `facts` holds what the sentences say, and depends on the type.
    """

    position: int
    type: str
    recorded_at: datetime
    actor: str
    correlation_id: str
    summary: str
    reasons: list[Reason]
    causes: list[Step]
    causes_go_on_at: int | None
    origin: Origin
    outcome: list[Reason]
    effects: list[Step]
    effects_go_on: bool
    facts: dict[str, Any]


async def _explain(services: Services, request: web.Request) -> Reply:
    query = parse_query(Query, request)
    await services.tables.wait_for_state(query.min_position)
    text = request.match_info["position"]
    async with services.tables.connection() as connection:
        found = await explain(PostgresLogQueries(connection), int(text))
    if found is None:
        raise Problem("not_found", f"the log has no position {text}")
    return respond(200, views.explanation(found))


ROUTES = (
    Route(
        method="GET",
        path=r"/api/v1/explain/{position:[0-9]{1,18}}",
        name="explain_event",
        summary="Why an event happened, or why something was refused, in words and as facts",
        tag="audit",
        scope=Scope.AUDIT,
        handler=_explain,
        query=Query,
        path_types={"position": PositionOrZero},
        answers={200: Explanation},
        problems=("not_found", "not_yet"),
    ),
)

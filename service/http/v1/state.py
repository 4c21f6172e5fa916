"""The squad's state, present and past."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema

from service import views
from service.history.folding import BeyondTheLog, TookTooLong, load_open
from service.history.time_travel import PastSquad, squad_at
from service.http import answers
from service.http.chunks import respond_long
from service.http.context import Services, parse_query
from service.http.lists import PositionOrZero, Query
from service.http.problems import Problem
from service.http.route import Route
from service.http.scope import Scope
from service.values import Moment, in_words

if TYPE_CHECKING:
    from aiohttp import web

    from service.http.reply import Reply

TIMEOUT_SECONDS = 10.0
"""How long the log may be folded for one answer; and how long a request may wait before that for others."""

_POSITION: TypeAdapter[int] = TypeAdapter(PositionOrZero)
_MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)
_EXAMPLES = [1_234, "2026-01-31T09:00:00Z"]


def _place(value: Any) -> int | datetime:
    text = str(value)
    try:
        return _POSITION.validate_python(text) if _is_number(text) else _MOMENT.validate_python(text)
    except ValidationError as error:
        raise ValueError(f"must be a position, or a time: {in_words(error.errors()[0])}") from error


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]+", text) is not None


DecisionContext = Annotated[
    int | datetime,
    PlainValidator(_place),
    WithJsonSchema({"anyOf": [_POSITION.json_schema(), {"type": "string", "format": "date-time"}]}),
]
"""A place in the log: a position or a time."""


class StateQuery(Query):
    """The query parameters of the state."""

    at: DecisionContext | None = Field(default=None, examples=_EXAMPLES)
    """A position, or a time, which means the last event recorded at or before it. Without it: now."""


async def _show(services: Services, request: web.Request) -> Reply | web.StreamResponse:
    query = parse_query(StateQuery, request)
    await services.tables.wait_for_state(query.min_position)
    then = await (_now(services) if query.at is None else _then(services, query.at))
    # Before the next await, which could change the state: it collects rows, which are immutable.
    whole = views.full_state(then.squad, then.moment)
    return await respond_long(services, request, lambda: whole)


async def _now(services: Services) -> PastSquad:
    squad, moment = services.writer.squad, services.clock.now()
    if squad.head.position == 0:
        raise Problem("unavailable", "the service is starting", retry_after_seconds=1)
    if squad.absent:
        squad = squad.copy()
        async with services.tables.connection() as connection:
            await load_open(connection, squad)
    return PastSquad(squad, moment)


async def _then(services: Services, at: int | datetime) -> PastSquad:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await services.looking_back.acquire()
    except TimeoutError as error:
        raise Problem(
            "took_too_long", "other requests for past states were still in progress", retry_after_seconds=5
        ) from error
    try:
        async with services.tables.connection() as connection:
            return await squad_at(
                connection, at, store_snapshot=services.snapshotter.store, within_seconds=TIMEOUT_SECONDS
            )
    except BeyondTheLog as error:
        raise Problem("not_found", str(error)) from error
    except TookTooLong as error:
        detail = f"{error}; a retry continues from there"
        raise Problem("took_too_long", detail, retry_after_seconds=1) from error
    finally:
        services.looking_back.release()


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/state",
        name="get_state",
        summary="The whole squad, as it is or as it was",
        tag="state",
        scope=Scope.AUDIT,
        handler=_show,
        query=StateQuery,
        answers={200: answers.SquadState},
        problems=("not_found", "not_yet", "took_too_long"),
    ),
)

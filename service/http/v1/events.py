"""Reading the log: as a list, one event, or a live stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import StringConstraints

from eventstore import log, lookup, sealing
from service.channels import agent_of
from service.http import answers
from service.http.context import Services, parse_query
from service.http.lists import ListQuery, PositionOrZero, Query, read_page
from service.http.problems import Problem
from service.http.reply import Reply, respond
from service.http.route import Media, Route
from service.http.scope import Scope, own_agent, require_own
from service.http.stream import stream
from service.reading import PositionNotReached
from service.values import Name

if TYPE_CHECKING:
    from aiohttp import web

    from eventstore.recorded import Recorded


EventType = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,100}$")]
Stream = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,400}$")]
"""The stream of a stored answer has up to 318 characters: the key, its agent, and the index in a batch."""


class EventQuery(ListQuery):
    """Filters of the log."""

    type: EventType | None = None
    """Only events of this type, such as `message_sent`."""
    stream: Stream | None = None
    """Only events of this stream, such as `budget-2026-01-31`."""
    agent: Name | None = None
    """Only what this agent did, such as the messages that it sent and its claims, and changes of tasks and
    e-mails that are assigned to it; not the messages sent to it, which are in its inbox."""


class StreamQuery(Query):
    """Filters of the live stream."""

    after: PositionOrZero | None = None
    """Begin after this position; without it and without Last-Event-ID, only new events are sent."""
    type: EventType | None = None
    """Only events of this type, such as `message_sent`."""
    stream: Stream | None = None
    """Only events of this stream, such as `budget-2026-01-31`."""
    agent: Name | None = None
    """Only what this agent did, such as the messages that it sent and its claims, and changes of tasks and
    e-mails that are assigned to it; not the messages sent to it, which are in its inbox."""


def show(recorded: Recorded) -> dict[str, Any]:
    """Return an event as the API shows it; it must have been revealed."""
    shown = recorded._asdict()
    shown["data"] = orjson.Fragment(recorded.data)
    shown["hash"] = recorded.hash.hex()
    return shown


async def _list(services: Services, request: web.Request) -> Reply:
    query = parse_query(EventQuery, request)
    await services.tables.wait_for_state(query.min_position)
    event_filter = lookup.Filter(query.type, query.stream, _own(query.agent), query.since, query.until)
    async with services.tables.connection() as connection:

        async def fetch(after: int, count: int) -> list[dict[str, Any]]:
            stored = await lookup.read_filtered(
                connection, after, count, event_filter, newest_first=query.newest_first
            )
            return [show(recorded) for recorded in await sealing.reveal(connection, stored)]

        shown = await read_page(fetch, query.start, query.limit)
        if (
            not shown["items"]
            and not query.newest_first
            and (ends_at := await log.head_position(connection)) < query.after
        ):
            raise PositionNotReached(ends_at, ends_at)
    return respond(200, shown)


async def _one(services: Services, request: web.Request) -> Reply:
    query = parse_query(Query, request)
    await services.tables.wait_for_state(query.min_position)
    text = request.match_info["position"]
    async with services.tables.connection() as connection:
        stored = await lookup.read_one(connection, int(text))
        if stored is None:
            raise Problem("not_found", f"the log has no position {text}")
        require_own(agent_of(stored), "an agent may see only its own events")
        [recorded] = await sealing.reveal(connection, [stored])
    return respond(200, show(recorded))


async def _stream(services: Services, request: web.Request) -> web.StreamResponse:
    query = parse_query(StreamQuery, request)
    event_filter = lookup.Filter(query.type, query.stream, _own(query.agent))
    await services.tables.wait_for_state(query.min_position)
    return await stream(services, request, query.after, event_filter)


def _own(agent: str | None) -> str | None:
    """Return the agent whose events are shown; an agent's key sees only its own, even without a filter."""
    if agent is not None:
        require_own(agent, "an agent may see only its own events")
    return agent if agent is not None else own_agent()


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/events",
        name="list_events",
        summary="The log, oldest or newest first",
        tag="events",
        scope=Scope.READ,
        handler=_list,
        query=EventQuery,
        answers={200: answers.page_of(answers.LoggedEvent)},
        problems=("not_yet", "wrong_agent"),
    ),
    Route(
        method="GET",
        path="/api/v1/events/stream",
        name="stream_events",
        summary="The log as server-sent events: `id` is the position, `event` the type",
        tag="events",
        scope=Scope.READ,
        handler=_stream,
        ends=False,
        query=StreamQuery,
        answers={
            200: Media(
                "text/event-stream",
                "One server-sent event per event of the log, with the event as JSON in `data`, as"
                " `GET /api/v1/events/{position}` shows it. A final `log_replaced` means that the log was"
                " replaced by another one, for example from a backup, which may lack what was read before",
            )
        },
        problems=(
            "not_yet",
            "wrong_agent",
            "too_many_streams",
            "streams_full",
        ),
    ),
    Route(
        method="GET",
        path=r"/api/v1/events/{position:[0-9]{1,18}}",
        name="get_event",
        summary="One event",
        tag="events",
        scope=Scope.READ,
        handler=_one,
        query=Query,
        path_types={"position": PositionOrZero},
        answers={200: answers.LoggedEvent},
        problems=("not_found", "not_yet", "wrong_agent"),
    ),
)

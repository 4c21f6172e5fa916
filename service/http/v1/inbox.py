"""Inboxes: the messages that an agent has not acknowledged, and waiting for one."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql
from pydantic import Field, TypeAdapter

from eventstore.listener import POLL_SECONDS, wait_for_hint
from projections import storage
from projections.messages import MESSAGES, messages
from service.decide.access import KEY_INVALID
from service.http import answers
from service.http.context import Services, parse_path, parse_query
from service.http.lists import PageQuery, read_page
from service.http.problems import Problem
from service.http.reply import respond
from service.http.route import Route
from service.http.scope import Scope, caller, require_own
from service.values import Name

if TYPE_CHECKING:
    from aiohttp import web

    from service.http.reply import Reply

MAX_WAIT_SECONDS = 55.0
"""How long a request may wait for a message: many proxies wait 60 seconds for an answer."""

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_IN_INBOX = sql.SQL(
    "position > %(after)s AND (to_agent = %(agent)s OR to_agent IS NULL)"
    " AND NOT EXISTS (SELECT FROM squad_message_acks acks"
    " WHERE acks.message_id = squad_messages.id AND acks.agent = %(agent)s)"
    " ORDER BY position LIMIT %(limit)s"
)
_NEXT = sql.SQL("WHERE {}").format(_IN_INBOX)
_OF_THOSE_LEFT = sql.SQL("WHERE position = ANY(%(left)s) AND {}").format(_IN_INBOX)


class InboxQuery(PageQuery):
    """Which part of an inbox, and how long to wait for one."""

    wait_seconds: float = Field(default=0, ge=0, le=MAX_WAIT_SECONDS)
    """If there is no message, wait for one, for at most this long. Meanwhile the request counts as an open
    event stream."""

    @property
    def seen(self) -> int | None:
        """The last position that the client knows of. A log that ends before it is another one."""
        return max(self.after, self.min_position or 0) or self.min_position


class _Page(NamedTuple):
    """A page of an inbox."""

    shown: dict[str, Any]
    covered: int
    """The position up to which it was read, or a slightly lower one."""


async def _inbox(services: Services, request: web.Request) -> Reply:
    agent = parse_path(_NAME, request, "name")
    require_own(agent, "an agent may read only its own inbox")
    query = parse_query(InboxQuery, request)
    if query.wait_seconds:
        return respond(200, await _wait_for_message(services, request, agent, query))
    await services.tables.cover(messages, query.min_position)
    return respond(200, (await _read_inbox(services, agent, query)).shown)


async def _wait_for_message(
    services: Services, request: web.Request, agent: str, query: InboxQuery
) -> dict[str, Any]:
    """Return a page of an inbox as soon as it has a message; an empty one after the time to wait."""
    deadline, who = monotonic() + query.wait_seconds, caller()
    with (
        services.streams.admit(who),
        services.metrics.open_streams.track_inprogress(),
        services.arrivals.watch(agent) as arrived,
    ):
        # Nothing wakes the request for what is in the log by now, even if it is not yet in the tables.
        log_number, needed = services.writer.replacements, services.writer.squad.head.position
        # Only reading takes turns: a request that waits for the tables must not hold up the others.
        await services.tables.cover(messages, query.seen)
        page = await _read_in_turn(services, agent, query, deadline)
        while not page.shown["items"]:
            left = deadline - monotonic()
            # A request whose client has gone has no transport; it is not notified of that.
            if left <= 0 or services.stopping or request.transport is None:
                break
            if not services.authenticator.is_still_allowed(who):
                raise Problem("unauthorized", KEY_INVALID)
            if services.writer.replacements != log_number:
                log_number, needed = services.writer.replacements, services.writer.squad.head.position
                await services.tables.cover(messages, query.seen)
                page = page._replace(covered=-1)
            waiter, seconds = arrived.waiter(), min(left, POLL_SECONDS)
            if page.covered >= needed:
                needed = arrived.position
            if page.covered >= needed:
                await wait_for_hint(waiter, seconds)
            # What is needed may be on its way into the tables still; only then is there something to read.
            elif await services.tables.reach(messages, needed, seconds):
                page = await _read_in_turn(services, agent, query, deadline)
        return page.shown


async def _read_in_turn(services: Services, agent: str, query: PageQuery, deadline: float) -> _Page:
    async with services.arrivals.turn(deadline - monotonic()):
        return await _read_inbox(services, agent, query)


async def _read_inbox(services: Services, agent: str, query: PageQuery) -> _Page:
    async with services.tables.connection() as connection:
        inbox = services.tables.inbox(agent)
        found: list[int] = []

        async def fetch(after: int, count: int) -> list[dict[str, Any]]:
            values = {"agent": agent, "after": after, "limit": count, "left": list(inbox.left)}
            rows = []
            if inbox.left and after < inbox.left[-1]:
                rows = await storage.select(connection, MESSAGES, _OF_THOSE_LEFT, values)
            if len(rows) < count:
                values |= {"after": max(after, inbox.seen_up_to), "limit": count - len(rows)}
                rows += await storage.select(connection, MESSAGES, _NEXT, values)
            found.extend(row.position for row in rows)
            return [row.asdict() for row in rows]

        shown = await read_page(fetch, query.after, query.limit)
    upto = shown["next"]
    there = [position for position in found if upto is None or position <= upto]
    services.tables.record_scan(inbox, query.after, upto, there)
    return _Page(shown, inbox.table_at)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/agents/{name}/inbox",
        name="list_inbox",
        summary="Messages to the agent or to all that it has not acknowledged",
        tag="messages",
        scope=Scope.READ,
        handler=_inbox,
        query=InboxQuery,
        path_types={"name": Name},
        answers={200: answers.page_of(answers.Message)},
        problems=("not_yet", "wrong_agent", "too_many_streams", "streams_full"),
    ),
)

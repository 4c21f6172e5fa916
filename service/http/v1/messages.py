"""Messages: sent to one or to all, listed, acknowledged. `service.http.v1.inbox` has the inboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from projections import storage
from projections.messages import ACKS, MESSAGES, messages
from service import commands as do
from service.http import answers, write_answers
from service.http.lists import ListQuery, Query, one_row, page_of_rows
from service.http.route import Route, write
from service.http.scope import Scope, own_agent, require_own
from service.values import ExternalId, Id, Name

if TYPE_CHECKING:
    from aiohttp import web

    from eventstore.connection import Connection
    from projections.messages import MessageRow
    from service.http.context import Services
    from service.http.reply import Reply

MAX_ACKNOWLEDGEMENTS = 1_000
"""How many acknowledgements are shown with a message: one to all has one for each agent."""

_ACKS_OF = sql.SQL("WHERE message_id = %(id)s ORDER BY position LIMIT %(limit)s")

OWN = sql.SQL("(from_agent = %(mine)s OR to_agent = %(mine)s OR to_agent IS NULL)")
"""What an agent's key sees: messages that the agent sent, and those to it or to all."""


class MessageQuery(ListQuery):
    """Filters of the list of messages."""

    from_agent: Name | None = None
    """Only messages that this agent sent."""
    to_agent: Name | None = None
    """Only messages sent to this agent by name. Its inbox also has those to all."""
    task_id: ExternalId | None = None
    """Only messages about this task."""


async def _list(services: Services, request: web.Request) -> Reply:
    mine = own_agent()
    return await page_of_rows(
        services, request, MessageQuery, messages, MESSAGES, conditions=OWN if mine else None, mine=mine
    )


async def _one(services: Services, request: web.Request) -> Reply:
    return await one_row(
        services,
        request,
        messages,
        MESSAGES,
        "message_not_found",
        "message",
        check=_check_own,
        more=_read_acknowledgements,
    )


async def _read_acknowledgements(connection: Connection, row: MessageRow) -> dict[str, Any]:
    acks = await storage.select(connection, ACKS, _ACKS_OF, {"id": row.id, "limit": MAX_ACKNOWLEDGEMENTS})
    shown = [ack.asdict() for ack in acks]
    for ack in shown:
        del ack["message_id"]
    return {"acknowledgements": shown}


def _check_own(row: MessageRow) -> None:
    if row.to_agent is not None and row.from_agent != own_agent():
        require_own(row.to_agent, f"message {row.id} is between other agents")


ROUTES = (
    write(
        "POST",
        "/api/v1/messages",
        do.SendMessage,
        "Send a message to one agent, or to all",
        tag="messages",
        scope=Scope.ACT,
        status=201,
        answer=write_answers.MessageTaken,
    ),
    Route(
        method="GET",
        path="/api/v1/messages",
        name="list_messages",
        summary="Messages, oldest or newest first",
        tag="messages",
        scope=Scope.READ,
        handler=_list,
        query=MessageQuery,
        answers={200: answers.page_of(answers.Message)},
        problems=("not_yet",),
    ),
    Route(
        method="GET",
        path="/api/v1/messages/{id}",
        name="get_message",
        summary="One message, and who has acknowledged it",
        tag="messages",
        scope=Scope.READ,
        handler=_one,
        query=Query,
        path_types={"id": Id},
        answers={200: answers.MessageWithAcknowledgements},
        problems=("message_not_found", "not_yet", "wrong_agent"),
    ),
    write(
        "POST",
        "/api/v1/messages/{id}/ack",
        do.AcknowledgeMessage,
        "Acknowledge a message, which removes it from the agent's inbox",
        tag="messages",
        scope=Scope.ACT,
        bound={"id": "message_id"},
        answer=write_answers.Acknowledged,
        problems=("message_not_found", "not_addressed"),
    ),
)

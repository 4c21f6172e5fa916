"""The e-mail log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from eventstore.events import EmailStatus
from projections.emails import EMAILS, emails
from service import commands as do
from service.http import answers, write_answers
from service.http.lists import ListQuery, OneOf, Query, one_row, page_of_rows
from service.http.route import Route, write
from service.http.scope import Scope, own_agent, require_own
from service.values import ExternalId, Id, Name

if TYPE_CHECKING:
    from aiohttp import web

    from projections.emails import EmailRow
    from service.http.context import Services
    from service.http.reply import Reply


_OWN = sql.SQL("(handled_by = %(mine)s OR handled_by IS NULL)")
"""What an agent's key sees: the e-mails that the agent handles, and those that nobody handles yet."""


class EmailQuery(ListQuery):
    """Filters of the e-mail log."""

    status: OneOf[EmailStatus] | None = None
    """Only e-mails with this status, or with one of several, separated by commas."""
    category: Name | None = None
    """Only e-mails of this category."""
    handled_by: Name | None = None
    """Only e-mails that this agent handles."""
    gmail_message_id: ExternalId | None = None
    """Only the e-mail with this Gmail message id."""


async def _list(services: Services, request: web.Request) -> Reply:
    mine = own_agent()
    return await page_of_rows(
        services,
        request,
        EmailQuery,
        emails,
        EMAILS,
        order="created_position",
        conditions=_OWN if mine else None,
        mine=mine,
    )


async def _one(services: Services, request: web.Request) -> Reply:
    return await one_row(services, request, emails, EMAILS, "email_not_found", "e-mail", check=_check_own)


def _check_own(row: EmailRow) -> None:
    if row.handled_by is not None:
        require_own(row.handled_by, f"e-mail {row.id} is handled by another agent")


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/emails",
        name="list_emails",
        summary="E-mails, oldest or newest first",
        tag="emails",
        scope=Scope.READ,
        handler=_list,
        query=EmailQuery,
        answers={200: answers.page_of(answers.Email)},
        problems=("not_yet",),
    ),
    write(
        "POST",
        "/api/v1/emails",
        do.LogEmail,
        "Log a received e-mail, once per Gmail message id",
        tag="emails",
        scope=Scope.ACT,
        status=201,
        answer=write_answers.EmailWritten,
        problems=("email_exists",),
    ),
    Route(
        method="GET",
        path="/api/v1/emails/{id}",
        name="get_email",
        summary="One e-mail",
        tag="emails",
        scope=Scope.READ,
        handler=_one,
        query=Query,
        path_types={"id": Id},
        answers={200: answers.Email},
        problems=("email_not_found", "not_yet", "wrong_agent"),
    ),
    write(
        "PATCH",
        "/api/v1/emails/{id}",
        do.UpdateEmail,
        "Change the given fields of an e-mail",
        tag="emails",
        scope=Scope.ACT,
        bound={"id": "email_id"},
        answer=write_answers.EmailWritten,
        problems=("email_not_found", "email_erased", "changed"),
    ),
)

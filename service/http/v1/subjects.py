"""Forgetting a subject: what is sealed with its key becomes unreadable, everywhere and forever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict

from eventstore import traces
from service import commands as do
from service.documented import Documented
from service.http import write_answers
from service.http.context import Services, body_of, parse_command, parse_object
from service.http.reply import Reply, respond
from service.http.route import Route
from service.http.scope import Scope
from service.http.submitting import carry_out, headers_of, rendering, request_from_http
from service.values import ShortText

if TYPE_CHECKING:
    from aiohttp import web


class Forget(Documented):
    """The subject to forget."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    subject: ShortText
    """The address of an e-mail sender, or the id of a message."""


async def _forget(services: Services, request: web.Request) -> Reply:
    body = await body_of(request)
    subject = parse_command(Forget, parse_object(body)).subject
    # Not in the writer, which must not wait for a scan of every unencrypted e-mail.
    async with services.tables.connection() as connection:
        in_plain = await traces.in_plain(connection, subject)
    asked = request_from_http(
        request, body, do.ForgetSubject(subject=subject, in_plain=in_plain), rendering(200)
    )
    done = await carry_out(services, asked)
    return respond(done.status, done.body, headers_of(done))


ROUTES = (
    Route(
        method="POST",
        path="/api/v1/subjects/forget",
        name="forget_subject",
        summary="Make a sender's e-mails, or a message, unreadable forever",
        tag="subjects",
        scope=Scope.OPERATE,
        not_batchable_because="it looks the subject up in the log before it is decided",
        handler=_forget,
        body=Forget,
        answers={200: write_answers.Forgotten},
        problems=("subject_not_found", "subject_in_plain"),
    ),
)

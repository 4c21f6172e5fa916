"""The door's frame: what reaches no route is refused like everything else, with a problem and a code."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from service.http.connection import Server
from service.http.context import MAX_BODY_BYTES, SERVICES, correlate
from service.http.packed import too_large
from service.http.problems import Problem
from service.http.reply import CORRELATION_HEADER, respond
from service.metrics import NO_ROUTE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest

    from service.http.context import Services
    from service.http.route import Response

    Handler = Callable[[BaseRequest], Awaitable[Response]]


_log = logging.getLogger(__name__)


class Runner(web.AppRunner):
    """Runs the application on connections of our own."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        # Not a middleware, which would cost every request something, also those that a route answers.
        services = self.app[SERVICES]
        handle = _telling_problems(made.request_handler, services)
        # A `Reply` passes through aiohttp as it is, up to `Connection.finish_response`.
        return Server(
            handle,  # type: ignore[arg-type]
            request_factory=made.request_factory,
            count=partial(services.metrics.request, NO_ROUTE),
        )


def _telling_problems(handle: Handler, services: Services) -> Handler:
    """Tells what aiohttp itself refuses, before any route is found, like everything else."""

    async def answer(request: BaseRequest) -> Response:
        try:
            return await handle(request)
        except web.HTTPException as error:
            response = _refused(request, error, services)
        services.metrics.request(NO_ROUTE, response.status)
        return response

    return answer


def _refused(request: BaseRequest, error: web.HTTPException, services: Services) -> Response:
    correlation = correlate(request.headers)
    match error:
        case web.HTTPNotFound():
            problem = Problem("not_found", f"nothing is at {request.path}")
        case web.HTTPMethodNotAllowed():
            if services.cors and (response := services.cors.preflight(request, error.allowed_methods)):
                response.headers[CORRELATION_HEADER] = correlation
                return response
            allowed = ", ".join(sorted(error.allowed_methods))
            headers = {"Allow": allowed}
            problem = Problem("method_not_allowed", f"allowed here: {allowed}", headers=headers)
        case web.HTTPRequestEntityTooLarge():
            problem = too_large(MAX_BODY_BYTES)
        case _:
            problem = Problem("bad_request", error.reason)
    if too_often := services.door.too_often(request):
        problem = too_often
    reply = respond(problem.status, problem.body, problem.headers)
    reply.correlation_id = correlation
    _log.debug("nothing was found to answer a request: %d", problem.status)
    if services.cors:
        services.cors.allow(request, reply.headers)
    return reply

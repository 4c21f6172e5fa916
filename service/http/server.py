"""The HTTP server. Requests that match no route are answered with a problem and a code like all others."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from service.http.compression import too_large
from service.http.connection import Server
from service.http.context import MAX_BODY_BYTES, SERVICES, correlate
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
    """Runs the application with our own connection class."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        # Not a middleware, which would also cost every request that a route answers.
        services = self.app[SERVICES]
        handle = _with_problems(made.request_handler, services)
        # aiohttp passes a `Reply` on unchanged to `Connection.finish_response`.
        return Server(
            handle,  # type: ignore[arg-type]
            request_factory=made.request_factory,
            count=partial(services.metrics.request, NO_ROUTE),
        )


def _with_problems(handle: Handler, services: Services) -> Handler:
    """Wrap a handler so that what aiohttp refuses before it finds a route becomes a problem."""

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
            problem = Problem("not_found", f"there is nothing at {request.path}")
        case web.HTTPMethodNotAllowed():
            if services.cors and (response := services.cors.preflight(request, error.allowed_methods)):
                response.headers[CORRELATION_HEADER] = correlation
                return response
            allowed = ", ".join(sorted(error.allowed_methods))
            headers = {"Allow": allowed}
            problem = Problem("method_not_allowed", f"allowed methods: {allowed}", headers=headers)
        case web.HTTPRequestEntityTooLarge():
            problem = too_large(MAX_BODY_BYTES)
        case _:
            problem = Problem("bad_request", error.reason)
    if limit_problem := services.authenticator.check_rate_limit(request):
        problem = limit_problem
    reply = respond(problem.status, problem.body, problem.headers)
    reply.correlation_id = correlation
    _log.debug("a request matched no route: %d", problem.status)
    if services.cors:
        services.cors.allow(request, reply.headers)
    return reply

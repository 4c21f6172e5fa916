"""The door's frame: what reaches no route is refused like everything else, with a problem and a code.

aiohttp answers by itself what it finds no route for, and what it cannot parse, in plain text, and for the
latter it logs a traceback each. That would let anybody who reaches the port fill the log.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import web

from service.http.context import MAX_BODY_BYTES, respond
from service.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest

    Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]

KEEPALIVE_SECONDS = 75.0
"""How long an idle connection is kept: longer than proxies do, so that they are the ones to end it."""

_log = logging.getLogger(__name__)


class _Connection(web.RequestHandler):
    """One connection."""

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what never became a request."""
        if status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        _log.debug("a request could not be parsed: %s", message)
        reason = (message or "it is not HTTP").strip().splitlines()[0].rstrip(":")
        problem = Problem("bad_request", reason)
        response = respond(problem.status, problem.body)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Tells of faults; what a client sends is none of ours."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            self.log_debug(*args, **kwargs)
        else:
            super().log_exception(*args, **kwargs)


class _Server(web.Server):
    """Makes the connections."""

    def __call__(self) -> web.RequestHandler:
        """One for each client that calls."""
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # None is how to have none
            keepalive_timeout=KEEPALIVE_SECONDS,
        )


class Runner(web.AppRunner):
    """Runs the application on such connections."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        # Not a middleware, which would cost every request something, also those that a route answers.
        return _Server(telling_problems(made.request_handler), request_factory=made.request_factory)


def telling_problems(handle: Handler) -> Handler:
    """Tells what aiohttp itself refuses, before any route is found, like everything else."""

    async def answer(request: BaseRequest) -> web.StreamResponse:
        try:
            return await handle(request)
        except web.HTTPNotFound:
            problem = Problem("not_found", f"nothing is at {request.path}")
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            headers = {"Allow": allowed}
            problem = Problem("method_not_allowed", f"allowed here: {allowed}", headers=headers)
        except web.HTTPRequestEntityTooLarge:
            problem = Problem("payload_too_large", f"a body may have {MAX_BODY_BYTES} bytes")
        except web.HTTPException as error:
            problem = Problem("bad_request", error.reason)
        return respond(problem.status, problem.body, problem.headers)

    return answer

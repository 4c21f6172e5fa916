"""A route: its method and path, its handler, and everything that its documentation says."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict

from eventstore.errors import StoreBusy, StoreUnavailable
from service.http.auth import CHALLENGE
from service.http.context import (
    SERVICES,
    Services,
    body_of,
    correlate,
    parse_command,
    parse_object,
    parse_query,
)
from service.http.problems import Problem
from service.http.reply import CORRELATION_HEADER, SECURITY_HEADERS, Reply, respond
from service.http.scope import Scope, set_caller
from service.http.submitting import carry_out, headers_of, rendering, request_from_http
from service.reading import PositionNotReached

if TYPE_CHECKING:
    from service.commands import AnyCommand, Command
    from service.requests import Answer, Outcome

Response = Reply | web.StreamResponse

Shape = type[BaseModel] | tuple[type[BaseModel], ...]
"""A model, or several alternatives."""

Handler = Callable[[Services, web.Request], Awaitable[Response]]
ProblemRenderer = Callable[[Problem], Reply]
Make = Callable[[Services, dict[str, Any], Mapping[str, str]], "AnyCommand"]
"""Makes a command from the services, the body's fields and the path parameters."""

_log = logging.getLogger(__name__)


class _NoQuery(BaseModel):
    """The query model of a route that takes no parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Media:
    """An answer that is not JSON, or is JSON of no fixed shape."""

    content_type: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Write:
    """How a write becomes a command: which one, and which of its fields are in the path."""

    command: type[Command]
    make: Make
    render: Callable[[Outcome], Answer]
    bound: Mapping[str, str] = field(default_factory=dict)
    """Command field by path parameter. The body has all the other fields of the command."""


def _show_problem(problem: Problem) -> Reply:
    return respond(problem.status, problem.body, problem.headers)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One entry of the route table."""

    method: str
    path: str
    name: str
    """A verb and a noun, such as `list_tasks`; generated clients name a function after it, so it stays."""
    summary: str
    tag: str
    scope: Scope
    """Whose keys it accepts. It has no default, so no route can forget it."""
    handler: Handler
    answers: Mapping[int, Shape | Media]
    """The answers, by status."""
    problems: tuple[str, ...] = ()
    """The codes of its own problems; those common to all routes are added."""
    query: type[BaseModel] | None = None
    body: Shape | None = None
    path_types: Mapping[str, Any] = field(default_factory=dict)
    write: Write | None = None
    not_batchable_because: str | None = None
    """Why this write cannot be part of a batch, if it cannot."""
    show_problem: ProblemRenderer = _show_problem
    while_stopping: bool = False
    """Whether it still answers while the service stops."""
    ends: bool = True
    """Whether its answer ever ends. If so, a GET route also answers HEAD."""

    @cached_property
    def plain_path(self) -> str:
        """The path without its parameters' patterns, as documented."""
        return re.sub(r"\{(\w+):(?:[^{}]|\{[^{}]*\})*\}", r"{\1}", self.path)

    @cached_property
    def takes_no_query(self) -> bool:
        """Whether query parameters are refused, because nothing would read them."""
        return self.method != hdrs.METH_GET and self.path.startswith("/api/v1/")

    async def __call__(self, request: web.Request) -> Response:
        """Answer a request; every error becomes a problem."""
        services = request.app[SERVICES]
        correlation = correlate(request.headers)
        begun = monotonic()
        known = None
        try:
            response: Response
            if services.stopping and not self.while_stopping:
                response = self.show_problem(_STOPPING)
            elif "%" in request.raw_path and not _is_utf8(request.raw_path):
                response = self.show_problem(_NOT_UTF8)
            else:
                if known := services.authenticator.authenticate(request, self.scope):
                    set_caller(known)
                if self.takes_no_query and "?" in request.raw_path:
                    parse_query(_NoQuery, request)
                response = await self.handler(services, request)
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            response = self.show_problem(as_problem(error))
        if isinstance(response, Reply):
            response.correlation_id = correlation
            if response.status == HTTPStatus.UNAUTHORIZED:
                response.headers.setdefault("WWW-Authenticate", CHALLENGE)
            if services.cors:
                services.cors.allow(request, response.headers)
        elif not response.prepared:
            response.headers.update(SECURITY_HEADERS)
            response.headers[CORRELATION_HEADER] = correlation
            if services.cors:
                services.cors.allow(request, response.headers)
        if services.stopping:
            response.force_close()
        services.metrics.request(self.plain_path, response.status)
        if _log.isEnabledFor(logging.DEBUG):
            took = (monotonic() - begun) * 1_000
            key = f", key {known.key_id}" if known and known.key_id else ""
            _log.debug("%s %s: %d in %.1f ms%s", self.method, self.plain_path, response.status, took, key)
        return response


_STOPPING = Problem("stopping", "this process accepts no more requests", retry_after_seconds=2)
_BEYOND_THE_LOG = (
    "the log ends at position {}; events after it were lost: an older backup was restored, or a standby"
    " that lacked them was promoted"
)
_NO_DATABASE = "the database cannot be reached, or no connection to it became free in time"
_DATABASE_BUSY = "the database gave up: a statement or a lock timed out, or resources ran out"
_NOT_UTF8 = Problem("bad_request", "the URL must be percent-encoded UTF-8")


def _is_utf8(raw_path: str) -> bool:
    try:
        unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        return False
    return True


def as_problem(error: Exception) -> Problem:
    """Return the problem for an exception. An unexpected one is logged and not disclosed."""
    match error:
        case Problem():
            return error
        case PositionNotReached(covered=covered, ends_at=None):
            return Problem("not_yet", f"the answer covers position {covered} so far", covered=covered)
        case PositionNotReached(covered=covered, ends_at=ends_at):
            return Problem("not_yet", _BEYOND_THE_LOG.format(ends_at), covered=covered, ends_at=ends_at)
        case StoreUnavailable():
            return Problem("unavailable", _NO_DATABASE, retry_after_seconds=5)
        case StoreBusy():
            return Problem("unavailable", _DATABASE_BUSY, retry_after_seconds=5)
        case _:
            _log.error("a request failed", exc_info=error)
            return Problem("internal_error", "see the service's log")


def _in_snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def write(
    method: str,
    path: str,
    command: type[Command],
    summary: str,
    *,
    tag: str,
    scope: Scope,
    answer: type[BaseModel],
    name: str | None = None,
    status: int = 200,
    bound: Mapping[str, str] | None = None,
    problems: tuple[str, ...] = (),
) -> Route:
    """Return a route that makes a command from its body and path and answers with the outcome.

    Its name is that of the command, unless given.
    """
    names = bound or {}

    def make(services: Services, fields: dict[str, Any], in_path: Mapping[str, str]) -> AnyCommand:
        del services
        return parse_command(command, fields, in_path, names)  # type: ignore[return-value]

    return write_of(
        method,
        path,
        Write(command=command, make=make, render=rendering(status), bound=names),
        summary,
        tag=tag,
        scope=scope,
        name=name,
        body=command,
        path_types={
            name: command.model_fields[field].rebuild_annotation() for name, field in names.items()
        },
        answers={status: answer},
        problems=problems,
    )


def write_of(
    method: str,
    path: str,
    how: Write,
    summary: str,
    *,
    tag: str,
    scope: Scope,
    name: str | None = None,
    body: type[BaseModel],
    path_types: Mapping[str, Any],
    answers: Mapping[int, type[BaseModel]],
    problems: tuple[str, ...],
) -> Route:
    """Return a route with its own way of making the command, both alone and in a batch."""

    async def handler(services: Services, request: web.Request) -> Reply:
        content = await body_of(request)
        command = how.make(services, parse_object(content), request.match_info)
        done = await carry_out(services, request_from_http(request, content, command, how.render))
        return respond(done.status, done.body, headers_of(done))

    return Route(
        method=method,
        path=path,
        name=name or _in_snake_case(how.command.__name__),
        summary=summary,
        tag=tag,
        scope=scope,
        handler=handler,
        answers=answers,
        problems=problems,
        body=body,
        path_types=path_types,
        write=how,
    )

"""Many writes in one request."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field

from eventstore import codec, log
from eventstore.events import RequestAnswered
from service.http import answers
from service.http.auth import Scope, require
from service.http.context import (
    Services,
    body_of,
    correlation_id,
    fingerprint,
    idempotency_key,
    parse_command,
    parse_object,
    respond,
)
from service.http.problems import Problem
from service.http.route import Route, as_problem, carry_out_write
from service.requests import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiohttp import web

MAX_COMMANDS = 1_000


class BatchedCommand(BaseModel):
    """A write, as it would be requested alone."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    method: Literal["POST", "PUT", "PATCH", "DELETE"]
    path: str = Field(max_length=500)
    body: dict[str, Any] = Field(default_factory=dict)


class Batch(BaseModel):
    """Writes that are decided in order; one that is refused does not stop the rest."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    commands: list[BatchedCommand] = Field(min_length=1, max_length=MAX_COMMANDS)


class Writes:
    """Finds the write that a method and a path mean."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Route]] = []
        for route in routes:
            if route.write is None:
                continue
            if "{" not in route.path:
                self._exact[route.method, route.path] = route
            else:
                pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path)
                self._patterns.append((route.method, re.compile(pattern), route))

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The write's route, and what stands in its path.

        Raises:
            Problem: there is no such write.
        """
        if exact := self._exact.get((method, path)):
            return exact, {}
        for its_method, pattern, route in self._patterns:
            if its_method == method and (match := pattern.fullmatch(path)):
                return route, {name: _decoded(text) for name, text in match.groupdict().items()}
        raise Problem("not_found", f"there is no write {method} {path}")


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise Problem("bad_request", "the path must be percent-encoded UTF-8") from error


async def _refuse_another_body(services: Services, streams: list[str], print_: str) -> None:
    """Refuses a key whole that answered another batch before, instead of command by command."""
    async with services.tables.connection() as connection:
        kept = [codec.decode(recorded) for recorded in await log.read_streams(connection, streams)]
    if any(isinstance(event, RequestAnswered) and event.fingerprint != print_ for event in kept):
        raise Problem("idempotency_mismatch", "the idempotency key was used before, for a different batch")


def route_for(routes: Iterable[Route]) -> Route:
    """The batch route over these routes' writes."""
    writes = Writes(routes)

    async def one(
        services: Services,
        command: BatchedCommand,
        *,
        key: str | None,
        print_: str,
        correlation: str,
        size: int,
    ) -> Answer:
        try:
            route, path = writes.find(command.method, command.path)
            require(route.scope)
            assert route.write
            return await carry_out_write(
                services,
                route.write,
                command.body,
                path,
                key=key,
                print_=print_,
                correlation=correlation,
                size=size,
            )
        except Exception as error:  # noqa: BLE001 - one that fails does not stop the rest
            problem = as_problem(error)
            return Answer(problem.status, problem.body)

    async def handler(services: Services, request: web.Request) -> web.StreamResponse:
        body = await body_of(request)
        batch = parse_command(Batch, parse_object(body))
        key, correlation = idempotency_key(request.headers), correlation_id(request.headers)
        count = len(batch.commands)
        keys = [f"{key}/{index}" if key else None for index in range(count)]
        print_ = fingerprint(request.method, request.path, body) if key else ""
        if key:
            await _refuse_another_body(services, [f"request-{one_key}" for one_key in keys], print_)
        # Tasks begin in the order they are made, and each is in the writer's queue before it first waits.
        results = await asyncio.gather(
            *(
                one(
                    services,
                    command,
                    key=one_key,
                    print_=print_,
                    correlation=correlation,
                    size=len(body) // count,
                )
                for command, one_key in zip(batch.commands, keys, strict=True)
            )
        )
        shown = {"results": [result._asdict() for result in results]}
        return respond(200, shown, {"X-Correlation-Id": correlation})

    return Route(
        method="POST",
        path="/api/v1/batch",
        summary="Up to 1,000 writes in one request, decided in order",
        tag="batch",
        scope=Scope.ACT,
        handler=handler,
        body=Batch,
        answers={200: answers.BatchDone},
    )

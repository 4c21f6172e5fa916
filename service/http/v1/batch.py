"""Many writes in one request."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.http import answers, json
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
from service.http.route import Route, Write, as_problem, carry_out_write
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
        self._exact: dict[tuple[str, str], Write] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Write]] = []
        for route in routes:
            if route.write is None:
                continue
            if "{" not in route.path:
                self._exact[route.method, route.path] = route.write
            else:
                pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path)
                self._patterns.append((route.method, re.compile(pattern), route.write))

    def find(self, method: str, path: str) -> tuple[Write, Mapping[str, str]]:
        """The write, and what stands in its path.

        Raises:
            Problem: there is no such write.
        """
        if exact := self._exact.get((method, path)):
            return exact, {}
        for its_method, pattern, write in self._patterns:
            if its_method == method and (match := pattern.fullmatch(path)):
                return write, match.groupdict()
        raise Problem("not_found", f"there is no write {method} {path}")


def route_for(routes: Iterable[Route]) -> Route:
    """The batch route over these routes' writes."""
    writes = Writes(routes)

    async def one(services: Services, command: BatchedCommand, key: str | None, correlation: str) -> Answer:
        try:
            write, path = writes.find(command.method, command.path)
            body = json.dumps(command.body)
            return await carry_out_write(
                services,
                write,
                command.body,
                path,
                key=key,
                print_=fingerprint(command.method, command.path, body) if key else "",
                correlation=correlation,
                size=len(body),
            )
        except Exception as error:  # noqa: BLE001 - one that fails does not stop the rest
            problem = as_problem(error)
            return Answer(problem.status, problem.body)

    async def handler(services: Services, request: web.Request) -> web.StreamResponse:
        batch = parse_command(Batch, parse_object(await body_of(request)), {})
        key, correlation = idempotency_key(request.headers), correlation_id(request.headers)
        # Tasks begin in the order they are made, and each is in the writer's queue before it first waits.
        results = await asyncio.gather(
            *(
                one(services, command, f"{key}/{index}" if key else None, correlation)
                for index, command in enumerate(batch.commands)
            )
        )
        body = {"results": [result._asdict() for result in results]}
        return respond(200, body, {"X-Correlation-Id": correlation})

    return Route(
        method="POST",
        path="/api/v1/batch",
        summary="Up to 1,000 writes in one request, decided in order",
        tag="batch",
        handler=handler,
        body=Batch,
        answers={200: answers.BatchDone},
    )

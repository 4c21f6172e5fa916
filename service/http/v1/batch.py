"""Many writes in one request."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from eventstore import codec, lookup, sealing
from eventstore.events import RequestAnswered
from service.http import answers
from service.http.chunks import respond_in_chunks
from service.http.context import (
    NO_FINGERPRINTS,
    Services,
    body_of,
    hash_of,
    idempotency_key,
    parse_command,
    parse_object,
)
from service.http.json import dumps
from service.http.lists import PAGE_BYTES
from service.http.problems import Problem, invalid_field
from service.http.reply import Reply
from service.http.route import Route, as_problem
from service.http.scope import Scope, require
from service.http.submitting import carry_out_all, request_for
from service.requests import Answer, Fingerprints, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from aiohttp import web

MAX_COMMANDS = 1_000
MAX_PATH_CHARACTERS = 2_000
"""A name alone takes up to 1,200 if each of its characters is percent-encoded."""


@with_config(ConfigDict(extra="forbid", strict=True))
class BatchedCommand(TypedDict):
    """A write, as it would be requested alone."""

    # A dict rather than a model: there can be a thousand, and parsed JSON consists of dicts anyway.
    method: Literal["POST", "PUT", "PATCH", "DELETE"]
    path: Annotated[str, Field(max_length=MAX_PATH_CHARACTERS)]
    body: NotRequired[dict[str, Any]]


class Batch(BaseModel):
    """Writes that are decided in order; one that is refused does not stop the rest.

    An `Idempotency-Key` covers the batch as a whole.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    commands: list[BatchedCommand] = Field(min_length=1, max_length=MAX_COMMANDS)


class Writes:
    """Finds the write for a method and a path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Route]] = []
        for route in routes:
            if route.write is None and route.not_batchable_because is None:
                continue
            if "{" not in route.path:
                self._exact[route.method, route.path] = route
            else:
                pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/?#]+)", route.path)
                self._patterns.append((route.method, re.compile(pattern), route))

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the write's route and its path parameters.

        Raises:
            Problem: there is no such write, or it is not allowed in a batch.
        """
        if exact := self._exact.get((method, path)):
            return _batchable(exact), {}
        for its_method, pattern, route in self._patterns:
            if its_method == method and (match := pattern.fullmatch(path)):
                return _batchable(route), {name: _decoded(text) for name, text in match.groupdict().items()}
        raise Problem("not_found", f"there is no write {method} {path}")

    def personal(self, command: BatchedCommand) -> frozenset[str]:
        """Return the fields of a command's body that can hold personal data."""
        try:
            write = self.find(command["method"], command["path"])[0].write
        except Problem:
            # It will be refused, and nothing of it is stored.
            return frozenset()
        return write.command.personal if write else frozenset()


def _batchable(route: Route) -> Route:
    if route.not_batchable_because:
        detail = f"send {route.method} {route.path} alone, not in a batch: {route.not_batchable_because}"
        raise invalid_field("path", detail)
    return route


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise Problem("bad_request", "the path must be percent-encoded UTF-8") from error


def fingerprints_of(
    writes: Writes,
    method: str,
    path: str,
    body: bytes,
    commands: Sequence[BatchedCommand],
    *,
    encrypt: bool,
) -> list[Fingerprints]:
    """Return what each command's own idempotency key is bound to: the whole batch.

    With encrypted payloads, what is stored for one command must not depend on personal data in another:
    they are sealed with different keys, and a hash is enough to check whether a guess is right.
    """
    personal = [writes.personal(command) for command in commands]
    wholes = [_whole(command) for command in commands]
    shown = [
        {**one, "body": {name: value for name, value in one["body"].items() if name not in its}}
        for one, its in zip(wholes, personal, strict=True)
    ]
    whole, bare = hash_of(method, path, body), hash_of(method, path, dumps(shown))
    fingerprints = []
    for one, its in zip(wholes, personal, strict=True):
        own = hash_of(method, path, bare.encode() + dumps(one)) if its else bare
        fingerprints.append(Fingerprints(own, bare, whole) if encrypt else Fingerprints(whole, bare, own))
    return fingerprints


def _whole(command: BatchedCommand) -> dict[str, Any]:
    """Return the command with its fields in a fixed order, and with a body even if it has none."""
    return {"method": command["method"], "path": command["path"], "body": command.get("body", {})}


async def _refuse_another_body(services: Services, fingerprints: Mapping[str, Fingerprints]) -> None:
    """Refuse the whole batch, rather than each command, if its key was used for another request.

    `fingerprints` are the acceptable fingerprints by key.
    """
    async with services.tables.connection() as connection:
        stored = await lookup.read_streams(connection, [f"request-{key}" for key in fingerprints])
        kept = [codec.decode(recorded) for recorded in await sealing.reveal(connection, stored)]
    if any(
        isinstance(event, RequestAnswered) and event.fingerprint not in fingerprints[event.key]
        for event in kept
    ):
        raise Problem(
            "idempotency_mismatch", "the idempotency key was used before, for a different request"
        )


async def _answer(
    services: Services, request: web.Request, results: Sequence[Answer | Problem]
) -> Reply | web.StreamResponse:
    """Answer with all results; in pieces if they are too large to build at once."""
    pieces, made, size = _pieces(results), list[bytes](), 0
    for piece in pieces:
        made.append(piece)
        size += len(piece)
        if size > PAGE_BYTES:
            return await respond_in_chunks(services, request, chain(made, pieces))
    return Reply(200, b"".join(made))


def _invalid(error: Exception) -> Answer:
    """Return the answer to an invalid command, stored instead of the exception.

    The exception's traceback references the handler's frame. Together they would form a cycle, which keeps
    the whole body in memory until garbage is collected.
    """
    problem = as_problem(error)
    return Answer(problem.status, problem.body)


def _pieces(results: Sequence[Answer | Problem]) -> Iterator[bytes]:
    before = b'{"results":['
    for result in results:
        yield before + dumps({"status": result.status, "body": result.body})
        before = b","
    yield b"]}"


def route_for(routes: Iterable[Route]) -> Route:
    """Return the batch route over these routes' writes."""
    writes = Writes(routes)

    def asked(
        services: Services,
        command: BatchedCommand,
        key: str | None,
        batch_key: str | None,
        fingerprints: Fingerprints,
        size: int,
    ) -> Request:
        route, path = writes.find(command["method"], command["path"])
        require(route.scope)
        how = route.write
        assert how
        return request_for(
            how.make(services, command.get("body", {}), path),
            key=key,
            batch_key=batch_key,
            fingerprints=fingerprints,
            size=size,
            render=how.render,
        )

    async def handler(services: Services, request: web.Request) -> Reply | web.StreamResponse:
        body = await body_of(request)
        batch = parse_command(Batch, parse_object(body))
        key = idempotency_key(request.headers)
        count = len(batch.commands)
        keys: Sequence[str | None] = [None] * count
        fingerprints = [NO_FINGERPRINTS] * count
        if key:
            encrypt = services.settings.encrypt_payloads
            fingerprints = fingerprints_of(
                writes, request.method, request.path, body, batch.commands, encrypt=encrypt
            )
            # Client keys contain no spaces, so none can be one of these.
            keys = own_keys = [f"batch:{index} {key}" for index in range(count)]
            by_key = dict(zip(own_keys, fingerprints, strict=True))
            await _refuse_another_body(services, {key: Fingerprints(fingerprints[0].bare), **by_key})
        requests: list[Request] = []
        # Commands that did not get as far as the writer, by index.
        refused: dict[int, Answer] = {}
        for place, (command, own_key, own) in enumerate(
            zip(batch.commands, keys, fingerprints, strict=True)
        ):
            try:
                requests.append(asked(services, command, own_key, key, own, len(body) // count))
            except Exception as error:  # noqa: BLE001 - one that fails does not stop the rest
                refused[place] = _invalid(error)
        done = iter(await carry_out_all(services, requests))
        results = [refused.get(place) or next(done) for place in range(count)]
        return await _answer(services, request, results)

    return Route(
        method="POST",
        path="/api/v1/batch",
        name="send_batch",
        summary="Up to 1,000 writes in one request, decided in order",
        tag="batch",
        scope=Scope.ACT,
        handler=handler,
        body=Batch,
        answers={200: answers.BatchDone},
    )

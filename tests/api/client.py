"""A client that checks every answer against the API's document, and a service to run it against."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import TypeAdapter

from eventstore import log
from service.app import serving
from service.http.answers import ProblemDetails
from service.http.openapi import SEED_PATH, problems
from service.http.problems import CONTENT_TYPE, KINDS
from service.http.route import Media
from service.http.routes import ROUTES
from service.http.seed import SeedError
from service.settings import Settings
from tests.support.components import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from service.http.route import Route
    from tests.support.postgres import PostgresServer

_TIMEOUT = aiohttp.ClientTimeout(total=30)
_PATTERNS = [(route, re.compile(re.sub(r"\{\w+\}", "[^/]+", route.plain_path))) for route in ROUTES]


class Answer(NamedTuple):
    """An answer of the service."""

    status: int
    body: Any
    headers: Mapping[str, str]

    def expect(self, status: int, code: str | None = None) -> dict[str, Any]:
        """The body; fails unless the answer has this status and, if one is given, this problem code."""
        assert self.status == status, f"{self.status}, not {status}: {self.body}"
        if code is not None:
            assert self.body["code"] == code
        return dict(self.body)


class Api:
    """A client of a service. A path without a leading slash is relative to `/api/v1`."""

    def __init__(self, session: aiohttp.ClientSession, key: str | None = None) -> None:
        self.session = session
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def with_key(self, key: str) -> Api:
        """A client of the same service that sends an API key."""
        return Api(self.session, key)

    async def get(self, path: str, headers: Mapping[str, str] | None = None, /, **query: object) -> Answer:
        """Send a GET request."""
        return await self.ask("GET", path, headers=headers, query=query)

    async def post(self, path: str, headers: Mapping[str, str] | None = None, /, **body: object) -> Answer:
        """Send a POST request with a body of these fields."""
        return await self.ask("POST", path, body, headers=headers)

    async def put(self, path: str, /, **body: object) -> Answer:
        """Send a PUT request with a body of these fields."""
        return await self.ask("PUT", path, body)

    async def patch(self, path: str, /, **body: object) -> Answer:
        """Send a PATCH request with a body of these fields."""
        return await self.ask("PATCH", path, body)

    async def delete(self, path: str) -> Answer:
        """Send a DELETE request."""
        return await self.ask("DELETE", path)

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, object] | None = None,
    ) -> Answer:
        """Send a request, and check that the answer is as documented."""
        target = path if path.startswith("/") else f"/api/v1/{path}"
        params = {name: str(value) for name, value in (query or {}).items()}
        async with self.session.request(
            method, target, params=params, json=body, headers={**self.headers, **(headers or {})}
        ) as response:
            text = await response.text()
            is_json = response.content_type in ("application/json", CONTENT_TYPE)
            answer = Answer(response.status, json.loads(text) if is_json else text, response.headers)
        assert_as_documented(method, response.url.raw_path, answer)
        return answer


def assert_as_documented(method: str, path: str, answer: Answer) -> None:
    """Fail unless status, content type and body are those that the route table declares."""
    assert answer.status != 500, answer.body
    content_type = answer.headers["Content-Type"].partition(";")[0]
    route = _route(method, path)
    declared = route.answers.get(answer.status) if route else None
    if isinstance(declared, Media):
        assert content_type == declared.content_type.partition(";")[0]
    elif declared is not None:
        assert content_type == "application/json"
        models = declared if isinstance(declared, tuple) else (declared,)
        TypeAdapter(_union(models)).validate_python(answer.body)
    elif route is not None and route.path == SEED_PATH:
        assert content_type == "application/json"
        details = SeedError.model_validate(answer.body).details
        if isinstance(details, dict):
            assert details["code"] in problems(route)[answer.status], (path, details)
    else:
        assert content_type == CONTENT_TYPE, answer
        problem = ProblemDetails.model_validate(answer.body)
        assert problem.status == answer.status == KINDS[problem.code].status
        assert problem.type == f"urn:squad:problem:{problem.code}"
        assert "Traceback" not in problem.detail
        assert not problem.model_extra, (path, problem)
        assert route is None or problem.code in problems(route)[problem.status], (path, problem)
    if answer.status in (429, 503) and "retry_after_seconds" in answer.body:
        assert int(answer.headers["Retry-After"]) == answer.body["retry_after_seconds"] > 0


def _union(models: tuple[type[Any], ...]) -> Any:
    union: Any = models[0]
    for model in models[1:]:
        union = union | model
    return union


def _route(method: str, path: str) -> Route | None:
    matching = (route for route, pattern in _PATTERNS if route.method == method and pattern.fullmatch(path))
    return next(matching, None)


@dataclass(frozen=True)
class Service:
    """The whole service in this process, on a database of its own."""

    url: str
    dsn: str
    api: Api
    tasks: list[asyncio.Task[None]]
    """The tasks that must not end: listener, projector, writer, timekeeper."""
    stop: asyncio.Event
    """Set it to stop the service before the end of the block, with requests still in flight."""

    async def head(self) -> int:
        """The position of the log's last event."""
        async with connected(self.dsn) as connection:
            return await log.head_position(connection)


@contextlib.asynccontextmanager
async def running_service(dsn: str, **settings: Any) -> AsyncIterator[Service]:
    """Run a service for the duration of the block."""
    chosen = Settings(dsn=dsn, port=0, **{"reset_hour": far_from_now(), "seed_jobs": False, **settings})
    stop: asyncio.Event = asyncio.Event()
    started: asyncio.Future[tuple[str, list[asyncio.Task[None]]]] = asyncio.Future()

    async def serve() -> None:
        try:
            async with serving(chosen) as running:
                started.set_result(running)
                await stop.wait()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    server = asyncio.create_task(serve())
    try:
        url, tasks = await started
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, timeout=_TIMEOUT, connector=connector) as session:
            yield Service(url, dsn, Api(session), tasks, stop)
    finally:
        stop.set()
        await server


@contextlib.contextmanager
def unreachable(server: PostgresServer, dsn: str) -> Iterator[None]:
    """Close all connections to the database and refuse new ones for the duration of the block."""
    name = conninfo_to_dict(dsn)["dbname"]
    assert isinstance(name, str)
    server.execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
    try:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(query, (name,))
        yield
    finally:
        server.execute("ALTER DATABASE {} ALLOW_CONNECTIONS true", name)


@functools.cache
def far_from_now() -> int:
    """The hour at which budget days begin, the same for all tests: so late that none begins meanwhile."""
    return (datetime.now(UTC).hour + 12) % 24

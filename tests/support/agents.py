"""Fake agents that answer as a test configures them: fast, slowly, wrongly, endlessly, or not at all."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]

MEBIBYTE = 1024 * 1024


class Call(NamedTuple):
    """A call that an agent received."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: datetime
    """When it arrived."""

    @property
    def payload(self) -> dict[str, Any]:
        """The decoded body."""
        payload: dict[str, Any] = orjson.loads(self.body)
        return payload


class Agents:
    """A server on which any path is an agent's endpoint. By default, an endpoint answers `{}`."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.in_flight: Counter[str] = Counter()
        """The number of calls in flight, by path."""
        self.max_in_flight: Counter[str] = Counter()
        """The maximum number of calls in flight, by path; the empty path stands for all calls."""
        self.stopping = asyncio.Event()
        self._behaviours: defaultdict[str, list[Behaviour]] = defaultdict(lambda: [answers({})])

    def on(self, path: str, *behaviours: Behaviour) -> None:
        """Set the answers to successive calls of a path; the last one is used for all further calls."""
        self._behaviours[path] = list(behaviours)

    def called(self, path: str) -> list[Call]:
        """The calls that a path received."""
        return [call for call in self.calls if call.path == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Record a call and answer it."""
        path = request.path
        now = datetime.now(UTC)
        self.calls.append(Call(path, request.headers.copy(), await request.read(), now))
        behaviours = self._behaviours[path]
        behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        self.in_flight[path] += 1
        self.max_in_flight[path] = max(self.max_in_flight[path], self.in_flight[path])
        self.max_in_flight[""] = max(self.max_in_flight[""], self.in_flight.total())
        try:
            return await behaviour(request)
        finally:
            self.in_flight[path] -= 1


@contextlib.asynccontextmanager
async def running_agents() -> AsyncIterator[Agents]:
    """Run agents on the loopback interface for the duration of the block."""
    agents = Agents()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", agents.handle)
    async with TestServer(app, skip_url_asserts=True) as server:
        agents.url = str(server.make_url("")).rstrip("/")
        yield agents
        agents.stopping.set()


def answers(body: object, status: int = 200, **headers: str) -> Behaviour:
    """A JSON answer."""
    return answers_bytes(orjson.dumps(body), status, **headers)


def answers_bytes(body: bytes, status: int = 200, **headers: str) -> Behaviour:
    """An answer with exactly these bytes."""

    async def behave(request: web.Request) -> web.StreamResponse:
        del request
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=body, status=status, headers=sent, content_type="application/json")

    return behave


def after(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """An answer after a delay."""

    async def behave(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await (then or answers({}))(request)

    return behave


def when(event: asyncio.Event, then: Behaviour | None = None) -> Behaviour:
    """An answer once an event is set."""

    async def behave(request: web.Request) -> web.StreamResponse:
        await event.wait()
        return await (then or answers({}))(request)

    return behave


def drips(every_seconds: float = 0.02) -> Behaviour:
    """An endless answer, a byte at a time, until the client disconnects."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" ")
                await asyncio.sleep(every_seconds)
        return response

    return behave


def hangs_up() -> Behaviour:
    """No answer: the connection is reset."""

    async def behave(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return behave


def answers_raw(answer: bytes) -> Behaviour:
    """These bytes, which need not be HTTP, after which the connection is closed."""

    async def behave(request: web.Request) -> web.StreamResponse:
        assert isinstance(request.transport, asyncio.Transport)
        request.transport.write(answer)
        request.transport.close()
        return web.Response()

    return behave


def truncates_answer() -> Behaviour:
    """Half an answer, after which the connection is closed."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b" " * 500)
        assert request.transport is not None
        request.transport.close()
        return response

    return behave


def is_signed(call: Call, secret: str) -> bool:
    """Whether a call has the signature that the Standard Webhooks specification prescribes."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}.".encode() + call.body
    expected = base64.b64encode(hmac.digest(key, signed, sha256)).decode()
    return call.headers["webhook-signature"] == f"v1,{expected}"

"""Agents that answer as a test tells them: fast, slowly, wrongly, endlessly, or not at all."""

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
    """A call that an agent got."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: datetime
    """When it came."""

    @property
    def payload(self) -> dict[str, Any]:
        """What it said."""
        payload: dict[str, Any] = orjson.loads(self.body)
        return payload


class Agents:
    """A server on which any path is an agent's endpoint. Those that were told nothing answer `{}`."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.busy: Counter[str] = Counter()
        """How many calls are under way, by path."""
        self.busiest: Counter[str] = Counter()
        """The most that ever were, by path, and in all by the empty one."""
        self.leaving = asyncio.Event()
        self._behaviours: defaultdict[str, list[Behaviour]] = defaultdict(lambda: [answers({})])

    def on(self, path: str, *behaviours: Behaviour) -> None:
        """Sets what calls to a path get, one after another; the last one goes for all that follow."""
        self._behaviours[path] = list(behaviours)

    def called(self, path: str) -> list[Call]:
        """The calls that a path got."""
        return [call for call in self.calls if call.path == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Takes a call."""
        path = request.path
        now = datetime.now(UTC)
        self.calls.append(Call(path, request.headers.copy(), await request.read(), now))
        told = self._behaviours[path]
        behaviour = told.pop(0) if len(told) > 1 else told[0]
        self.busy[path] += 1
        self.busiest[path] = max(self.busiest[path], self.busy[path])
        self.busiest[""] = max(self.busiest[""], self.busy.total())
        try:
            return await behaviour(request)
        finally:
            self.busy[path] -= 1


@contextlib.asynccontextmanager
async def running_agents() -> AsyncIterator[Agents]:
    """Agents for the time of a block, on the loopback interface."""
    agents = Agents()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", agents.handle)
    async with TestServer(app, skip_url_asserts=True) as server:
        agents.url = str(server.make_url("")).rstrip("/")
        yield agents
        agents.leaving.set()


def answers(body: object, status: int = 200, **headers: str) -> Behaviour:
    """A JSON answer."""
    return answers_bytes(orjson.dumps(body), status, **headers)


def answers_bytes(body: bytes, status: int = 200, **headers: str) -> Behaviour:
    """An answer of just these bytes."""

    async def behave(request: web.Request) -> web.StreamResponse:
        del request
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=body, status=status, headers=shown, content_type="application/json")

    return behave


def after(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """An answer that takes its time."""

    async def behave(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await (then or answers({}))(request)

    return behave


def when(event: asyncio.Event, then: Behaviour | None = None) -> Behaviour:
    """An answer that waits for something."""

    async def behave(request: web.Request) -> web.StreamResponse:
        await event.wait()
        return await (then or answers({}))(request)

    return behave


def drips(every_seconds: float = 0.02) -> Behaviour:
    """An answer that goes on and on, a byte at a time, until nobody listens any more."""

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


def is_signed(call: Call, secret: str) -> bool:
    """Whether a call bears the signature that the Standard Webhooks specification prescribes."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}.".encode() + call.body
    expected = base64.b64encode(hmac.digest(key, signed, sha256)).decode()
    return call.headers["webhook-signature"] == f"v1,{expected}"

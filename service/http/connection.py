"""One client's connection: what never becomes a request, and whoever lets us wait for too long.

aiohttp answers what it cannot parse in plain text, and logs a traceback each. That would let anybody who
reaches the port fill the log. And it waits as long as it keeps an idle connection for a request's head, and
for ever for an answer to be taken. That would let anybody who reaches the port pin our memory at no cost to
themselves (slowloris). So there is a bound on each of these waits, and on how many connections there are.
They are looked through once a second: a timer for each request would cost every request something.
"""

from __future__ import annotations

import logging
import resource
from http import HTTPStatus
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from service.http.context import correlate
from service.http.problems import Problem
from service.http.reply import CORRELATION_HEADER, Reply, respond
from service.writing.batch import new_id

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest

    Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]

KEEPALIVE_SECONDS = 75.0
"""How long an idle connection is kept: longer than proxies do, so that they are the ones to end it."""

HEAD_SECONDS = 15.0
"""How long a request's line and headers may take to arrive; the first one's from the connection on."""

TAKE_SECONDS = 30.0
TAKE_BYTES = 64 * 1024
"""So much of an answer a client must take in that time, or it is dropped."""

MAX_UNSENT_BYTES = 128 * 1024 * 1024
"""How much of answers all clients together may leave untaken; those who take least are dropped first."""

MAX_CONNECTIONS = 10_000
"""How many clients there are at once."""

MAX_HEADERS = 64
MAX_HEADER_BYTES = 8_190
MAX_LINE_BYTES = 8_190
"""Bounds of a request's head."""

LOOK_SECONDS = 1.0
"""How often the connections are looked through."""

_OTHER_FILES = 200
"""How many files are open besides: connections to the database, what agents are called over."""

_log = logging.getLogger(__name__)


def _most_connections() -> int:
    """How many clients there may be at once: fewer where the system lets us open few files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files - _OTHER_FILES)
    )


class Connection(web.RequestHandler):
    """One connection."""

    def __init__(
        self, manager: web.Server, count: Callable[[int], None], *, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # None is how to have none
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
        )
        self._count = count
        """Counts an answer to what no route is asked for, by its status."""
        self._head_since: float | None = None
        """Since when a head has been arriving, where one is."""
        self._heard = False
        """Whether anything has arrived at all."""
        self._wire: asyncio.Transport | None = None
        """As long as there is one: aiohttp forgets its own when it hangs up, and what is unsent stays."""
        self._unsent: tuple[float, int] | None = None
        """Since when how many bytes have been waiting for the client to take them."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins; one connection too many is told so, and ended."""
        super().connection_made(transport)
        self._wire = cast("asyncio.Transport", transport)
        self._head_since = self._loop.time()
        assert self._manager
        if len(self._manager._connections) > (most := _most_connections()):
            self._end_with(Problem("connections_full", f"{most} connections are open"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends."""
        self._wire = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what arrived; notes where it leaves a head unfinished."""
        before = self._request_count
        super().data_received(data)
        self._heard = True
        if self._request_count != before:
            self._head_since = None
        elif self._head_since is None and self._waiter is not None:
            # Not where aiohttp still takes the body of a request that was answered without it.
            self._head_since = self._loop.time()

    def look(self, now: float) -> None:
        """Ends the connection where the client has let us wait for too long."""
        # While a handler is at work, it has bounds of its own for what it reads and writes.
        if self._wire is None or self._current_request is not None:
            self._unsent = None
            return
        is_open = self.transport is not None
        if is_open and self._head_since is not None and now - self._head_since > HEAD_SECONDS:
            detail = f"the head took more than {HEAD_SECONDS:g} seconds"
            # Where nothing was said to us, nothing is answered.
            self._end_with(Problem("request_timeout", detail) if self._heard else None)
            return
        waiting = self._wire.get_write_buffer_size()
        if not waiting:
            self._unsent = None
        elif self._unsent is None or waiting <= self._unsent[1] - TAKE_BYTES:
            self._unsent = (now, waiting)
        elif now - self._unsent[0] > TAKE_SECONDS:
            self.drop()

    @property
    def untaken(self) -> tuple[float, int]:
        """Since when the client has taken little, and how many bytes it has yet to take."""
        if self._wire is None or self._unsent is None:
            return 0.0, 0
        return self._unsent[0], self._wire.get_write_buffer_size()

    def drop(self) -> None:
        """Ends the connection at once, and forgets what the client did not take."""
        self._unsent = None
        if self._wire:
            self._wire.abort()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what never became a request."""
        correlation = correlate(request.headers)
        if status != HTTPStatus.BAD_REQUEST:
            response = super().handle_error(request, status, exc, message)
            self._count(status)
            response.headers[CORRELATION_HEADER] = correlation
            return response
        # Not what is wrong with it, which repeats it, and may be a key.
        _log.debug("a request could not be parsed")
        reason = (message or "it is not HTTP").strip().splitlines()[0].rstrip(":")
        problem = Problem("bad_request", reason)
        self._count(status)
        return _last_word(problem, correlation).response()

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse | Reply, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer; True where the client has gone meanwhile."""
        if not isinstance(resp, Reply):
            return await super().finish_response(request, resp, start_time)
        transport = self.transport
        if transport is None or transport.is_closing() or self._upgraded or not resp.is_plain(request):
            return await super().finish_response(request, resp.response(), start_time)
        # Of an answer that was sent, nothing is asked but whether the connection goes on.
        sent = cast("web.StreamResponse", resp)
        transport.write(resp.in_one_piece())
        if self.writing_paused:
            # It waits to be taken once, not twice.
            resp.body = b""
            # A client that takes nothing is not answered what it asks meanwhile.
            try:
                await request.writer.drain()
            except ConnectionError:
                return sent, True
        return sent, False

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Tells of faults; what a client sends is none of ours."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            self.log_debug(*args, **kwargs)
        else:
            super().log_exception(*args, **kwargs)

    def _end_with(self, problem: Problem | None) -> None:
        """Says a last word, where there is one, and hangs up."""
        transport = cast("asyncio.Transport", self.transport)
        self._head_since = None
        if problem:
            self._count(problem.status)
            transport.write(_last_word(problem, new_id()).in_one_piece())
        # Not by close() alone: aiohttp would go on with what it has read.
        self.force_close()


def _last_word(problem: Problem, correlation_id: str) -> Reply:
    reply = respond(problem.status, problem.body)
    reply.correlation_id = correlation_id
    reply.force_close()
    return reply


class Server(web.Server):
    """Makes the connections, and looks through them as long as there are any."""

    _looking: asyncio.TimerHandle | None = None

    def __init__(self, handler: Handler, *, count: Callable[[int], None], **how: Any) -> None:
        super().__init__(handler, **how)
        self._count = count

    def __call__(self) -> web.RequestHandler:
        """One for each client that calls."""
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look)
        return Connection(self, self._count, loop=self._loop)

    def _look(self) -> None:
        connections = cast("list[Connection]", self.connections)
        now = self._loop.time()
        for connection in connections:
            connection.look(now)
        self._bound_unsent(connections)
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look) if connections else None

    def _bound_unsent(self, connections: list[Connection]) -> None:
        waiting = [(*connection.untaken, connection) for connection in connections]
        held = sum(size for _, size, _ in waiting)
        if held <= MAX_UNSENT_BYTES:
            return
        # Whoever takes much of an answer is among the last.
        for _, size, connection in sorted(waiting, key=itemgetter(0)):
            if size:
                connection.drop()
                held -= size
            if held <= MAX_UNSENT_BYTES:
                return

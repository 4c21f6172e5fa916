"""One client's connection: malformed requests, timeouts and slow clients.

aiohttp answers malformed requests in plain text and logs a traceback for each, which would let anybody who
reaches the port fill the log. It waits for a request's head as long as it keeps an idle connection, and
forever for a client to read its answer, which would let anybody who reaches the port pin our memory at no
cost to themselves (slowloris). So each of these waits is bounded, and so is the number of connections. The
connections are checked once a second, because a timer per request would slow down every request.
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
"""How long an idle connection is kept: longer than proxies keep one, so that they close it first."""

REQUEST_HEAD_SECONDS = 15.0
"""How long a request's head may take to arrive; for the first one, from the start of the connection."""

STALL_SECONDS = 30.0
STALL_BYTES = 64 * 1024
"""A client that does not read `STALL_BYTES` of an answer in `STALL_SECONDS` is dropped."""

MAX_UNSENT_BYTES = 128 * 1024 * 1024
"""How many unsent bytes of answers all clients together may have; the longest stalled are dropped first."""

MAX_CONNECTIONS = 10_000
"""How many clients may be connected at once."""

MAX_HEADERS = 64
MAX_HEADER_BYTES = 8_190
MAX_LINE_BYTES = 8_190
"""The limits of a request's head."""

CHECK_SECONDS = 1.0
"""How often the connections are checked."""

_OTHER_FILES = 200
"""How many file descriptors to leave for other uses: connections to the database and to agents."""

_log = logging.getLogger(__name__)


def _max_connections() -> int:
    """Return how many clients may be connected at once: fewer if the limit on open files is low."""
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
        """Counts an answer that no route made, by status."""
        self._head_since: float | None = None
        """When the head that is arriving began, if one is."""
        self._has_received = False
        """Whether anything has arrived at all."""
        self._wire: asyncio.Transport | None = None
        """The transport until it is lost. aiohttp drops its own on closing, while unsent bytes remain."""
        self._unsent: tuple[float, int] | None = None
        """Since when the client has been stalled, and with how many unsent bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection; if there are too many, answer with a problem and close it."""
        super().connection_made(transport)
        self._wire = cast("asyncio.Transport", transport)
        self._head_since = self._loop.time()
        assert self._manager
        if len(self._manager._connections) > (most := _max_connections()):
            self._close_with(Problem("connections_full", f"{most} connections are open"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the transport."""
        self._wire = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived; note whether it leaves a head unfinished."""
        before = self._request_count
        super().data_received(data)
        self._has_received = True
        if self._request_count != before:
            self._head_since = None
        elif self._head_since is None and self._waiter is not None:
            # Not while aiohttp drains the body of a request that was answered without it.
            self._head_since = self._loop.time()

    def check_timeouts(self, now: float) -> None:
        """Close the connection if the client has kept us waiting for too long."""
        # A running handler has its own timeouts for reading and writing.
        if self._wire is None or self._current_request is not None:
            self._unsent = None
            return
        is_open = self.transport is not None
        if is_open and self._head_since is not None and now - self._head_since > REQUEST_HEAD_SECONDS:
            detail = f"the head took more than {REQUEST_HEAD_SECONDS:g} seconds"
            # A client that has sent nothing gets no answer.
            self._close_with(Problem("request_timeout", detail) if self._has_received else None)
            return
        waiting = self._wire.get_write_buffer_size()
        if not waiting:
            self._unsent = None
        elif self._unsent is None or waiting <= self._unsent[1] - STALL_BYTES:
            self._unsent = (now, waiting)
        elif now - self._unsent[0] > STALL_SECONDS:
            self.abort_unsent()

    @property
    def stalled(self) -> tuple[float, int]:
        """Since when the client has been stalled, and how many bytes it has yet to read."""
        if self._wire is None or self._unsent is None:
            return 0.0, 0
        return self._unsent[0], self._wire.get_write_buffer_size()

    def abort_unsent(self) -> None:
        """Abort the connection and discard what is unsent."""
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
        """Answer a request that could not be parsed."""
        correlation = correlate(request.headers)
        if status != HTTPStatus.BAD_REQUEST:
            response = super().handle_error(request, status, exc, message)
            self._count(status)
            response.headers[CORRELATION_HEADER] = correlation
            return response
        # The reason is not logged: it quotes the request, and that may contain a key.
        _log.debug("a request could not be parsed")
        reason = (message or "it is not HTTP").strip().splitlines()[0].rstrip(":")
        problem = Problem("bad_request", reason)
        self._count(status)
        return _final_reply(problem, correlation).response()

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse | Reply, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; the second result is True if the client has disconnected."""
        if not isinstance(resp, Reply):
            return await super().finish_response(request, resp, start_time)
        transport = self.transport
        if transport is None or transport.is_closing() or self._upgraded or not resp.is_plain(request):
            return await super().finish_response(request, resp.response(), start_time)
        # After this, aiohttp only looks at whether the answer keeps the connection alive.
        sent = cast("web.StreamResponse", resp)
        transport.write(resp.in_one_piece())
        if self.writing_paused:
            # The transport has buffered the body; do not keep it twice.
            resp.body = b""
            # A client that reads nothing gets no answer to further requests until it does.
            try:
                await request.writer.drain()
            except ConnectionError:
                return sent, True
        return sent, False

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log an exception; a malformed payload is the client's fault and logged at debug level only."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            self.log_debug(*args, **kwargs)
        else:
            super().log_exception(*args, **kwargs)

    def _close_with(self, problem: Problem | None) -> None:
        """Send a final problem, if there is one, and close the connection."""
        transport = cast("asyncio.Transport", self.transport)
        self._head_since = None
        if problem:
            self._count(problem.status)
            transport.write(_final_reply(problem, new_id()).in_one_piece())
        # close() alone would let aiohttp go on with requests that it has already read.
        self.force_close()


def _final_reply(problem: Problem, correlation_id: str) -> Reply:
    reply = respond(problem.status, problem.body)
    reply.correlation_id = correlation_id
    reply.force_close()
    return reply


class Server(web.Server):
    """Makes the connections, and checks them for as long as there are any."""

    _check_timer: asyncio.TimerHandle | None = None

    def __init__(self, handler: Handler, *, count: Callable[[int], None], **how: Any) -> None:
        super().__init__(handler, **how)
        self._count = count

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of a new connection."""
        if self._check_timer is None:
            self._check_timer = self._loop.call_later(CHECK_SECONDS, self._check_connections)
        return Connection(self, self._count, loop=self._loop)

    def _check_connections(self) -> None:
        connections = cast("list[Connection]", self.connections)
        now = self._loop.time()
        for connection in connections:
            connection.check_timeouts(now)
        self._limit_unsent(connections)
        self._check_timer = (
            self._loop.call_later(CHECK_SECONDS, self._check_connections) if connections else None
        )

    def _limit_unsent(self, connections: list[Connection]) -> None:
        waiting = [(*connection.stalled, connection) for connection in connections]
        held = sum(size for _, size, _ in waiting)
        if held <= MAX_UNSENT_BYTES:
            return
        # The longest stalled come first.
        for _, size, connection in sorted(waiting, key=itemgetter(0)):
            if size:
                connection.abort_unsent()
                held -= size
            if held <= MAX_UNSENT_BYTES:
                return

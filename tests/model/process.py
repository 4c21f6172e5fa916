"""A service process of the model: the real writer with an event loop, a clock and a network of its own.

It runs only when the model lets it, and pauses at every statement that it sends to the database. psycopg,
the machine's clocks and randomness are replaced.
"""

from __future__ import annotations

import contextlib
import logging
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from psycopg import AsyncClientCursor, AsyncCursor

from eventstore import keys, log, lookup, pages
from eventstore.errors import StoreUnavailable
from eventstore.listener import Hints
from service import clock as clocks
from service.clock import DatabaseClock
from service.history import folding, restore, snapshots
from service.writing import appender, batch, batch_size, confirmed, head_keeper, sealer, writer
from service.writing.writer import Writer
from tests.model.fake_connection import Cursor, FakeConnection, SimpleCursor
from tests.model.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.memory.squad import Squad
    from service.requests import Outcome, Request
    from tests.model.server import Server

PAGE_EVENTS = 7
"""Small enough for reads to take several pages."""


class Promise:
    """The result of a request, which must reflect the log at a moment after the request was made."""

    def __init__(self, process: Process) -> None:
        self.result: Outcome | Exception | None = None
        self._process = process
        self._head_at_submission = len(process.server.log)

    def set_result(self, result: Outcome | Exception) -> None:
        """Set the result that the caller got."""
        assert self.result is None
        if not isinstance(result, Exception):
            assert self._process.squad.head.position >= self._head_at_submission, "the answer is stale"
        self.result = result


class Process:
    """One process. Its monotonic clock is the server's, minus the time for which it was suspended."""

    running: Process
    """The one that is running at the moment."""

    def __init__(
        self, server: Server, wall_clock_ahead: timedelta, *, encrypt: bool, is_pooled: bool
    ) -> None:
        self.seen: list[Recorded] = []
        """The events that its observers have received."""
        self.connection: FakeConnection | None = None
        self.is_cut_off = False
        """Whether it cannot connect."""
        self._is_pooled = is_pooled
        self.suspended_seconds = 0.0
        self.notifications_heard = len(server.notifications)
        self.server = server
        self._wall_clock_ahead = wall_clock_ahead
        Process.running = self
        self.loop = Loop(self.monotonic)  # type: ignore[abstract]
        self.hints = Hints()
        self.writer = Writer("", "squad", DatabaseClock(), self.hints, encrypt=encrypt)
        self.writer.observers.append(self.seen.extend)
        self._writer_task = self.loop.create_task(self.writer.run())

    @property
    def squad(self) -> Squad:
        """The state on which it decides."""
        return self.writer.squad

    @property
    def is_at_the_head(self) -> bool:
        """Whether its state is at the head of the log."""
        return self.squad.head.position == len(self.server.log)

    @property
    def is_idle(self) -> bool:
        """Whether it is connected and waits for work."""
        connection = self.connection
        return (
            self.writer.ready
            and connection is not None
            and not connection.is_broken
            and connection.pending is None
        )

    @property
    def is_done(self) -> bool:
        """Whether it is idle and has answered all requests."""
        return self.is_idle and not self.writer._is_busy

    @property
    def holds_the_lock(self) -> bool:
        """Whether its session holds the log's lock."""
        return self.connection is not None and self.connection.session is self.server.holder

    def is_sending(self, text: str) -> bool:
        """Whether it waits for the answer to a statement that contains this text."""
        connection = self.connection
        return (
            connection is not None and connection.pending is not None and text in connection.pending.query
        )

    def monotonic(self) -> float:
        """Its monotonic clock."""
        return self.server.monotonic() - self.suspended_seconds

    def wall_clock(self) -> datetime:
        """Its machine's wall clock."""
        return self.server.now + self._wall_clock_ahead

    def submit(self, request: Request, timeout_seconds: float) -> Promise:
        """Submit a client's request."""
        promise = Promise(self)
        self.loop.create_task(self._answer(request, timeout_seconds, promise))
        return promise

    def step(self) -> None:
        """Run until it waits for the database, for work or for time to pass."""
        Process.running = self
        self.loop.run()
        assert not self.loop.faults, self.loop.faults

    def stop(self) -> None:
        """Stop it gracefully, so that waiting callers get an answer."""
        # It must have started first.
        self.step()
        self._writer_task.cancel()
        self.step()
        assert self._writer_task.done()

    def kill(self) -> None:
        """Kill it; nothing that it was doing continues."""
        Process.running = self
        if self.connection is not None:
            self.connection.is_broken = True
        self.loop.kill()

    def connect(self) -> Connection:
        """Open a connection."""
        if self.is_cut_off:
            raise StoreUnavailable("the network is down")
        assert self.connection is None or self.connection.is_broken
        self.connection = FakeConnection(self.server.open(), is_pooled=self._is_pooled)
        return cast("Connection", self.connection)

    async def _answer(self, request: Request, timeout_seconds: float, promise: Promise) -> None:
        try:
            promise.set_result(await self.writer.submit(request, timeout_seconds))
        except AssertionError as fault:
            self.loop.faults.append(fault)
        except Exception as error:  # noqa: BLE001 - the laws check which
            promise.set_result(error)


class _Scan:
    """A replacement for `pages.scan` that reads page by page without a thread, and can be killed."""

    def __init__(
        self, connection: Connection, after: int, upto: int, page_events: int, *, row_format: object
    ) -> None:
        assert row_format is pages.FULL_EVENT
        self._connection, self._at, self._upto, self._page_events = connection, after, upto, page_events

    def __aiter__(self) -> _Scan:
        return self

    async def __anext__(self) -> list[Recorded]:
        events = min(self._page_events, self._upto - self._at)
        page = await log.read_after(self._connection, self._at, events) if events > 0 else []
        if not page:
            raise StopAsyncIteration
        self._at = page[-1].position
        return page

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""


class Errors(logging.Handler):
    """Collects the errors that the service logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record the message."""
        self.found.append(record.getMessage() + str(record.exc_info or ""))


errors = Errors()


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Patch the writer to use fake connections and the clocks of the running process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "connect", _connect)
        for module, name, fake, real in (
            (log, "AsyncCursor", Cursor, AsyncCursor),
            (log, "AsyncClientCursor", SimpleCursor, AsyncClientCursor),
        ):
            patch.setattr(module, name, _fake_or_real(fake, real))
        for timed in (appender, clocks, confirmed, folding, head_keeper, batch_size, writer):
            patch.setattr(timed, "monotonic", lambda: Process.running.monotonic())
        patch.setattr(clocks, "datetime", SimpleNamespace(now=lambda _: Process.running.wall_clock()))
        for naming in (batch, keys):
            patch.setattr(naming, "uuid7", lambda: f"00000000-0000-7000-8000-{next(_ids):012x}")
        # Small values, so that a batch leaves some waiting commands behind unless the network is slow.
        patch.setattr(batch_size, "AMORTIZED_COMMANDS", 2)
        patch.setattr(batch_size, "_MIN_SECONDS", 0.0001)
        patch.setattr(sealer, "_MIN_NEW_KEYS", 1)
        patch.setattr(lookup, "SHORT_STREAM_EVENTS", 2)
        patch.setattr(log, "PAGE_EVENTS", PAGE_EVENTS)
        patch.setattr(log.read_after, "__defaults__", (PAGE_EVENTS,))
        # Small values, so that a few dozen events are a long log for a process that starts.
        patch.setattr(folding, "PAGE_EVENTS", PAGE_EVENTS)
        patch.setattr(folding, "scan", _Scan)
        patch.setattr(snapshots, "INTERVAL_EVENTS", 30)
        patch.setattr(restore, "MAX_FOLD_EVENTS", 20)
        logger = logging.getLogger("service")
        logger.addHandler(errors)
        patch.setattr(logger, "propagate", False)
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.removeHandler(errors)


_ids = count(1)


async def _connect(dsn: str, schema: str, *, name: str) -> Connection:
    del dsn, schema, name
    return Process.running.connect()


def _fake_or_real(fake: type[Cursor], real: type[Any]) -> Callable[..., Any]:
    """Return a function that makes a cursor for a fake or a real connection."""

    def cursor(connection: Any, **more: Any) -> Any:
        return (fake if isinstance(connection, FakeConnection) else real)(connection, **more)

    return cursor

"""A service process of the model: the real writer, with an event loop, a clock and a network of its own.

It goes on only when the model lets it, and stands still at every word that it says to the database. What is
put in the place of the real thing is what psycopg, the clocks of the machine and chance are to it.
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
from service.writing import appender, batch, confirmed, keeper, pace, sealer, writer
from service.writing.writer import Writer
from tests.model.line import Cursor, Line, SimpleCursor
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
"""So few that reading takes several pages."""


class Promise:
    """What becomes of a request. What is told must be true of a moment since it was made."""

    def __init__(self, process: Process) -> None:
        self.result: Outcome | Exception | None = None
        self._process = process
        self._log_ended_at = len(process.server.log)

    def keep(self, result: Outcome | Exception) -> None:
        """The caller was told."""
        assert self.result is None
        if not isinstance(result, Exception):
            assert self._process.squad.head.position >= self._log_ended_at, "an answer that was true once"
        self.result = result


class Process:
    """One process. Its monotonic clock is the server's, less the time that it slept through."""

    running: Process
    """The one that is going on at this moment."""

    def __init__(
        self, server: Server, wall_clock_is_ahead: timedelta, *, encrypt: bool, is_pooled: bool
    ) -> None:
        self.seen: list[Recorded] = []
        """What its observers were told, since it began."""
        self.line: Line | None = None
        self.is_cut_off = False
        """Whether it cannot connect."""
        self._is_pooled = is_pooled
        self.slept_seconds = 0.0
        self.notifications_heard = len(server.notifications)
        self.server = server
        self._wall_clock_is_ahead = wall_clock_is_ahead
        Process.running = self
        self.loop = Loop(self.monotonic)  # type: ignore[abstract]
        self.hints = Hints()
        self.writer = Writer("", "squad", DatabaseClock(), self.hints, encrypt=encrypt)
        self.writer.observers.append(self.seen.extend)
        self._life = self.loop.create_task(self.writer.run())

    @property
    def squad(self) -> Squad:
        """The state that it decides on."""
        return self.writer.squad

    @property
    def is_at_the_head(self) -> bool:
        """Whether its state is that of the log's last event."""
        return self.squad.head.position == len(self.server.log)

    @property
    def is_idle(self) -> bool:
        """Whether it is connected, and waits for work."""
        line = self.line
        return self.writer.ready and line is not None and not line.is_broken and line.wants is None

    @property
    def is_done(self) -> bool:
        """Whether it is idle, and nobody waits for an answer."""
        return self.is_idle and not self.writer._busy

    @property
    def holds_the_lock(self) -> bool:
        """Whether nobody else can append."""
        return self.line is not None and self.line.session is self.server.holder

    def wants(self, words: str) -> bool:
        """Whether it stands at a statement with these words."""
        line = self.line
        return line is not None and line.wants is not None and words in line.wants.query

    def monotonic(self) -> float:
        """Its own clock."""
        return self.server.monotonic() - self.slept_seconds

    def wall_clock(self) -> datetime:
        """What its machine shows."""
        return self.server.now + self._wall_clock_is_ahead

    def ask(self, request: Request, patience_seconds: float) -> Promise:
        """A client's request reaches it."""
        promise = Promise(self)
        self.loop.create_task(self._answer(request, patience_seconds, promise))
        return promise

    def go_on(self) -> None:
        """Goes on until it waits for the database, for work or for time to pass."""
        Process.running = self
        self.loop.run()
        assert not self.loop.faults, self.loop.faults

    def stop(self) -> None:
        """Ends it as a service ends that is told to: whoever waits is told so."""
        # It has begun, at least.
        self.go_on()
        self._life.cancel()
        self.go_on()
        assert self._life.done()

    def kill(self) -> None:
        """Whatever it was at is never gone on with."""
        Process.running = self
        if self.line is not None:
            self.line.is_broken = True
        self.loop.kill()

    def connect(self) -> Connection:
        """Opens a connection."""
        if self.is_cut_off:
            raise StoreUnavailable("the network is away")
        assert self.line is None or self.line.is_broken
        self.line = Line(self.server.open(), is_pooled=self._is_pooled)
        return cast("Connection", self.line)

    async def _answer(self, request: Request, patience_seconds: float, promise: Promise) -> None:
        try:
            promise.keep(await self.writer.submit(request, patience_seconds))
        except AssertionError as fault:
            self.loop.faults.append(fault)
        except Exception as error:  # noqa: BLE001 - the laws say which
            promise.keep(error)


class _Scan:
    """What `pages.scan` gives, but one page after the other, without a thread, and ready to be killed."""

    def __init__(
        self, connection: Connection, after: int, upto: int, page_events: int, *, shape: object
    ) -> None:
        assert shape is pages.WHOLE
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
        """There is nothing to close."""


class Errors(logging.Handler):
    """What the service says is an error of its own. In the model none is meant."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Takes note."""
        self.found.append(record.getMessage() + str(record.exc_info or ""))


errors = Errors()


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """The writer talks to lines, and reads the clock of the process that is going on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "connect", _connect)
        for module, name, ours, theirs in (
            (log, "AsyncCursor", Cursor, AsyncCursor),
            (log, "AsyncClientCursor", SimpleCursor, AsyncClientCursor),
        ):
            patch.setattr(module, name, _either(ours, theirs))
        for timed in (appender, clocks, confirmed, folding, keeper, pace, writer):
            patch.setattr(timed, "monotonic", lambda: Process.running.monotonic())
        patch.setattr(clocks, "datetime", SimpleNamespace(now=lambda _: Process.running.wall_clock()))
        for naming in (batch, keys):
            patch.setattr(naming, "uuid7", lambda: f"00000000-0000-7000-8000-{next(_ids):012x}")
        # So that of what waits some is left behind, unless the network is slow.
        patch.setattr(pace, "PLENTY", 2)
        patch.setattr(pace, "_LEAST_SECONDS", 0.0001)
        patch.setattr(sealer, "_SMALLEST_LOT", 1)
        patch.setattr(lookup, "SHORT", 2)
        patch.setattr(log, "PAGE_EVENTS", PAGE_EVENTS)
        patch.setattr(log.read_after, "__defaults__", (PAGE_EVENTS,))
        # So that a few dozen events are a long way for a process that starts.
        patch.setattr(folding, "PAGE_EVENTS", PAGE_EVENTS)
        patch.setattr(folding, "scan", _Scan)
        patch.setattr(snapshots, "EVENTS_BETWEEN", 30)
        patch.setattr(restore, "FOLDED_SOONER_EVENTS", 20)
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


def _either(ours: type[Cursor], theirs: type[Any]) -> Callable[..., Any]:
    """A cursor for a line of the model, or for a real connection."""

    def cursor(connection: Any, **more: Any) -> Any:
        return (ours if isinstance(connection, Line) else theirs)(connection, **more)

    return cursor

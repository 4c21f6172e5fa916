"""A service process in the simulation: the real writer and appender, stopped at every word to the database.

`simulated` puts the functions of this module in the place of those that talk to Postgres. A process is then
a coroutine that stands still at each request until somebody says what becomes of it: it is carried out, or
lost on its way, or carried out and its answer lost.
"""

from __future__ import annotations

import contextlib
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from eventstore import log
from eventstore.errors import StoreBusy, StoreUnavailable
from eventstore.listener import Hints
from service import appender, batch, recall, restore, writer
from service import clock as clocks
from service.clock import DatabaseClock
from service.requests import Outcome, Request, Ticket
from service.squad import Squad
from service.writer import Writer
from tests.model.server import PAGE_EVENTS, Word

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterator, Sequence
    from datetime import datetime, timedelta

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from tests.model.server import Server, Session


class _Suspended:
    """Stands still until somebody goes on with the process."""

    def __init__(self, wanted: Word | None) -> None:
        self._wanted = wanted

    def __await__(self) -> Generator[Word | None, Any, Any]:
        return (yield self._wanted)


class Line:
    """A process's end of a connection."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.is_broken = False

    async def say(self, what: str, *arguments: Any) -> Any:
        """Says a word, and waits for the answer."""
        if self.is_broken:
            raise StoreUnavailable("the line is broken")
        return await _Suspended(Word(what, arguments))

    async def execute(self, statement: str) -> None:
        """Ends a transaction; nothing else is asked for in words."""
        assert statement == "ROLLBACK"
        await self.rollback()

    async def rollback(self) -> None:
        """Ends a transaction."""
        await self.say("rollback")


class Promise:
    """A future without an event loop. Its process must be at the log's head when it tells anything."""

    def __init__(self, process: Process) -> None:
        self.result: Outcome | Exception | None = None
        self._process = process

    def done(self) -> bool:
        """Whether the caller was told."""
        return self.result is not None

    def set_result(self, outcome: Outcome) -> None:
        """Tells the caller."""
        assert self.result is None
        assert self._process.is_at_the_head, "an answer that was true once"
        self.result = outcome

    def set_exception(self, error: Exception) -> None:
        """Tells the caller that there is no outcome."""
        assert self.result is None
        self.result = error


class Process:
    """One process. Its monotonic clock is the server's, less the time that it slept through."""

    running: Process
    """The one that is going on at this moment."""

    def __init__(self, name: str, server: Server, wall_clock_is_ahead: timedelta) -> None:
        self.name = name
        self.seen: list[Recorded] = []
        """What its observers were told, since it began."""
        self.wants: Word | None = None
        """The request that it stands at."""
        self.line: Line | None = None
        self.slept_seconds = 0.0
        self.wall_clock_is_ahead = wall_clock_is_ahead
        self._server = server
        Process.running = self
        self.clock = DatabaseClock()
        self.writer = Writer("", "squad", self.clock, Hints())
        self.writer.observers.append(self.seen.extend)
        self._life: Coroutine[Word | None, Any, None] | None = None

    @property
    def squad(self) -> Squad:
        """The state that it decides on."""
        return self.writer.squad

    @property
    def is_at_the_head(self) -> bool:
        """Whether its state is that of the log's last event."""
        return self.squad.head.position == len(self._server.log)

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection, or thinks so."""
        return self._life is not None

    @property
    def is_idle(self) -> bool:
        """Whether it is connected and waits for work."""
        return self._life is not None and self.wants is None

    def monotonic(self) -> float:
        """Its own clock."""
        return self._server.monotonic() - self.slept_seconds

    def wall_clock(self) -> datetime:
        """What its machine shows."""
        return self._server.now + self.wall_clock_is_ahead

    def connect(self) -> None:
        """Opens a connection, and goes on until it wants something."""
        assert self._life is None
        self.line = Line(self._server.open(self.name))
        self._life = self._live(cast("Connection", self.line))
        self.go_on(None)

    def go_on(self, answer: Any) -> None:
        """Gives it the answer that it waits for; an exception is one."""
        assert self._life is not None
        Process.running = self
        self.wants = None
        try:
            if isinstance(answer, Exception):
                self.wants = self._life.throw(answer)
            else:
                self.wants = self._life.send(answer)
        except (StoreUnavailable, StoreBusy):
            self._life = None
        except BaseException:
            self._life = None
            raise

    def vanish(self) -> None:
        """It is killed: whatever it was at is never gone on with."""
        if self._life is not None and self.line is not None:
            self.line.is_broken = True
            with contextlib.suppress(StoreUnavailable, RuntimeError):
                self._life.close()
        self._life = None
        self.wants = None

    async def _live(self, line: Connection) -> None:
        """What `Writer.run` does with a connection, a step at a time."""
        one = self.writer
        one.waiting.put_back(await one._appender.begin(line))
        while True:
            await _Suspended(None)
            await one._appender.look(line)
            if tickets := one.waiting.drain():
                await one._carry_out(line, tickets)


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """The writer talks to lines, and reads the clock of the process that is going on."""
    numbers = count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "PAGE_EVENTS", PAGE_EVENTS)
        for module in (appender, restore):
            patch.setattr(module, "log", _LOG)
            patch.setattr(module, "hanging_up_after", lambda *_: contextlib.nullcontext())
        patch.setattr(appender, "restore", _restore)
        patch.setattr(recall, "read", lambda line, wanted: line.say("recall", wanted))
        for timed in (appender, clocks, writer):
            patch.setattr(timed, "monotonic", lambda: Process.running.monotonic())
        patch.setattr(clocks, "datetime", SimpleNamespace(now=lambda _: Process.running.wall_clock()))
        patch.setattr(batch, "uuid7", lambda: f"00000000-0000-7000-8000-{next(numbers):012x}")
        patch.setattr(batch._log, "exception", _no_fault)
        yield


def _no_fault(*args: Any) -> None:
    raise AssertionError(f"a decision failed: {args}")


async def _restore(connection: Line) -> Squad:
    squad = Squad()
    await restore.catch_up(cast("Connection", connection), squad)
    return squad


async def _append(
    line: Line, batch: Sequence[Recorded], decided_at: datetime, *, commit: bool = False
) -> datetime:
    told: datetime = await line.say("append", tuple(batch), decided_at, commit)
    return told


_LOG = SimpleNamespace(
    PAGE_EVENTS=PAGE_EVENTS,
    append=_append,
    clock=lambda line: line.say("clock"),
    head_position=lambda line: line.say("head_position"),
    read_one=lambda line, position: line.say("read_one", position),
    read_after=lambda line, position: line.say("read_after", position, PAGE_EVENTS),
    lock_and_read=lambda line, position: line.say("lock_and_read", position),
    find_ids=lambda line, ids: line.say("find_ids", ids),
)


def ticket_for(request: Request, process: Process) -> tuple[Ticket, Promise]:
    """A ticket that nobody awaits, and what becomes of it."""
    promise = Promise(process)
    return Ticket(request, cast("Any", promise)), promise

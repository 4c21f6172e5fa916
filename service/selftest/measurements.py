"""The measurements of a self-test, one function each. Times are in milliseconds, rates per second."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import count
from time import perf_counter, process_time
from typing import TYPE_CHECKING, NamedTuple

from eventstore.connection import connect
from eventstore.listener import Listener
from eventstore.translation import translating
from projections.projector import Projector
from service.background import background
from service.clock import DatabaseClock
from service.commands import SendMessage, SetPolicy
from service.requests import Request
from service.selftest.temporary_schema import own_schema
from service.writing.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventstore.connection import Connection

CALLERS = (1, 64, 512)
MAX_COMMANDS = 100_000
"""The most commands per measurement, so that a fast machine does not fill its disk."""

SHARES = 2 + 1 + len(CALLERS) + 2
"""How many equal shares the time is split into."""

_EVENTS_A_SECOND = 200
_TEXT = "x" * 200
_ROWS = "CREATE TABLE self_test (id bigint GENERATED ALWAYS AS IDENTITY, data text NOT NULL)"
_INSERT = "INSERT INTO self_test (data) VALUES (%s)"
_COMMITS = ("on", "off")


class Latency(NamedTuple):
    """How long something took, in milliseconds."""

    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """The percentiles of at least one measured time."""
        ordered = sorted(seconds)
        return cls(_percentile(ordered, 50) * 1000, _percentile(ordered, 99) * 1000)


class Rate(NamedTuple):
    """Commands per second, the latency of each, and how much of one CPU core this process used."""

    per_second: float
    latency: Latency
    cpu: float


class Figures(NamedTuple):
    """All measurements."""

    server_version: str
    durable: bool
    """Whether the server waits for its disk before it acknowledges a commit."""
    round_trip: Latency
    commit: Latency
    """One small transaction, durable."""
    commit_unflushed: Latency
    """The same without waiting for the disk; the difference is the disk's share."""
    notification: Latency
    commands: Mapping[int, Rate]
    """By number of concurrent callers."""
    visible: Latency
    """From the answer to a command until its row is in the read table."""


async def run(dsn: str, seconds: float, report: Callable[[str], None] = lambda _: None) -> Figures:
    """Measure everything, in a schema of its own.

    Args:
        dsn: the database.
        seconds: how long to measure in total, not counting the creation of the schema.
        report: called with what is being measured.
    """
    share = seconds / SHARES
    async with own_schema(dsn) as name, await connect(dsn, name, name="squad bench") as connection:
        with translating():
            version, durable = await _server(connection)
            report("the database round trip")
            round_trip = await _repeat(lambda: connection.execute("SELECT 1", prepare=True), share / 2)
            report("durable commits")
            commits = await _commits(connection, share / 2)
            report("notifications")
            notification = await _notifications(dsn, name, connection, share)
        async with _Parts(dsn, name) as parts:
            commands = {}
            for callers in CALLERS:
                report(f"commands, {callers} callers" if callers > 1 else "commands, 1 caller")
                commands[callers] = await _commands(parts.writer, callers, share)
            report("from the log to the tables")
            await parts.wait_until_caught_up()
            visible = await _visibility(parts, share * 2)
        return Figures(version, durable, round_trip, *commits, notification, commands, visible)


class _Parts:
    """A writer, a listener and a projector on the schema."""

    def __init__(self, dsn: str, schema: str) -> None:
        listener = Listener(dsn, schema)
        self.writer = Writer(dsn, schema, DatabaseClock(), listener.events)
        self.projector = Projector(dsn, schema, listener.events)
        self.writer.on_known.append(self.projector.observe)
        self._work = (listener.run(), self.writer.run(), self.projector.run())
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> _Parts:
        await self._stack.enter_async_context(background(*self._work))
        await self.writer.submit(_request(SetPolicy(daily_tokens=0)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def wait_until_caught_up(self) -> None:
        """Wait until the tables show everything that the writer has appended."""
        await self.wait_until_visible(self.writer.squad.head.position)

    async def wait_until_visible(self, position: int) -> None:
        """Wait until the tables show a position."""
        while True:
            waiter = self.projector.advanced.waiter()
            if self.projector.active and min(self.projector.positions.values()) >= position:
                return
            await waiter.wait()


def _request(command: SendMessage | SetPolicy) -> Request:
    return Request(command, "system:bench", "bench")


async def _server(connection: Connection) -> tuple[str, bool]:
    cursor = await connection.execute(
        "SELECT current_setting('server_version'),"
        " current_setting('fsync')::boolean AND current_setting('synchronous_commit') <> 'off'"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


async def _commits(connection: Connection, seconds: float) -> tuple[Latency, Latency]:
    """Measure transactions of one row, with and without waiting for the disk."""
    await connection.execute(_ROWS)
    found = []
    for setting in _COMMITS:
        await connection.execute(f"SET synchronous_commit = {setting}")
        found.append(
            await _repeat(lambda: connection.execute(_INSERT, (_TEXT,), prepare=True), seconds / 2)
        )
    await connection.execute("SET synchronous_commit = on")
    return found[0], found[1]


async def _notifications(dsn: str, schema: str, sender: Connection, seconds: float) -> Latency:
    """Measure notifications from one connection to another."""
    channel = f"{schema}.self_test"
    async with await connect(dsn, schema, name="squad bench listener") as receiver:
        await receiver.execute(f'LISTEN "{channel}"')

        async def there_and_back() -> None:
            await sender.execute("SELECT pg_notify(%s, '')", (channel,), prepare=True)
            async for _ in receiver.notifies(timeout=5, stop_after=1):
                pass

        return await _repeat(there_and_back, seconds)


async def _commands(writer: Writer, callers: int, seconds: float) -> Rate:
    command = SendMessage(from_agent="alice", to_agent="bob", message=_TEXT)
    waited: list[float] = []
    started, cpu = perf_counter(), process_time()

    async def caller() -> None:
        # At least once, so that there is a result even if one command takes longer than the available time.
        before = perf_counter()
        while True:
            await writer.submit(_request(command))
            now = perf_counter()
            waited.append(now - before)
            if now >= started + seconds or len(waited) >= MAX_COMMANDS:
                return
            before = now

    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed = perf_counter() - started
    return Rate(len(waited) / elapsed, Latency.of(waited), (process_time() - cpu) / elapsed)


async def _visibility(parts: _Parts, seconds: float) -> Latency:
    """Measure at a steady rate that leaves everything idle most of the time."""
    command = SendMessage(from_agent="alice", to_agent="bob", message=_TEXT)
    found: list[float] = []

    async def one() -> None:
        outcome = await parts.writer.submit(_request(command))
        answered = perf_counter()
        assert outcome.position
        await parts.wait_until_visible(outcome.position)
        found.append(perf_counter() - answered)

    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in count():
            due = started + number / _EVENTS_A_SECOND
            if due > started + seconds:
                break
            await asyncio.sleep(max(0.0, due - perf_counter()))
            group.create_task(one())
    return Latency.of(found)


async def _repeat(work: Callable[[], Awaitable[object]], seconds: float) -> Latency:
    """Measure repeated calls, one at a time."""
    found: list[float] = []
    until = perf_counter() + seconds
    await work()
    while (before := perf_counter()) < until or not found:
        await work()
        found.append(perf_counter() - before)
    return Latency.of(found)


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

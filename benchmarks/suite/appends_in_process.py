"""Durable appends without HTTP, beside one transaction with a notification for each event.

The writer decides, hashes, appends, and notifies once a batch. The transaction inserts the same payload in
one statement that also notifies, autocommitted, so it is a single round trip: the best that psycopg can do
event by event. It is measured at several numbers of connections, and the best of them is the baseline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
import psycopg

from benchmarks import stage
from benchmarks.frame import Benchmark, Contender, percentile
from eventstore import schema
from eventstore.listener import Hints
from service.app import background
from service.clock import DatabaseClock
from service.commands import SendMessage, SetPolicy
from service.requests import Request
from service.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.frame import Measure, Sample

SQUAD_SCHEMA = "squad"
CALLERS = (1, 64, 512)
CONNECTIONS = (1, 8, 32)
BEST = "INSERT + NOTIFY, best"

_TEXT = "x" * 200
_TABLE = """
    CREATE TABLE plain_events (
        position    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id          uuid        NOT NULL UNIQUE DEFAULT gen_random_uuid(),
        data        json        NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
"""
_INSERT = """
    WITH inserted AS (INSERT INTO plain_events (data) VALUES (%s) RETURNING position)
    SELECT position, pg_notify('plain_events', position::text) FROM inserted
"""

Append = Callable[[], Awaitable[object]]


@asynccontextmanager
async def _prepare() -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        writer = await stack.enter_async_context(_writer(dsn))
        connections = await stack.enter_async_context(_connections(dsn, max(CONNECTIONS)))
        yield (
            *(Contender(_squad(count), _measure(_submitting(writer, count))) for count in CALLERS),
            *(
                Contender(_plain(count), _measure([_inserting(one) for one in connections[:count]]))
                for count in CONNECTIONS
            ),
        )


def _squad(callers: int) -> str:
    return f"squad, {callers} callers" if callers > 1 else "squad, 1 caller"


def _plain(connections: int) -> str:
    return f"INSERT + NOTIFY, {connections} connection{'s' if connections > 1 else ''}"


@asynccontextmanager
async def _writer(dsn: str) -> AsyncIterator[Writer]:
    await schema.apply(dsn, SQUAD_SCHEMA)
    writer = Writer(dsn, SQUAD_SCHEMA, DatabaseClock(), Hints())
    async with background(writer.run()):
        await writer.submit(Request(SetPolicy(daily_tokens=0), "system:benchmark", "benchmark"))
        yield writer


@asynccontextmanager
async def _connections(dsn: str, count: int) -> AsyncIterator[list[psycopg.AsyncConnection[Any]]]:
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
            for _ in range(count)
        ]
        await opened[0].execute(_TABLE)
        yield opened


def _submitting(writer: Writer, callers: int) -> list[Append]:
    command = SendMessage(from_agent="alice", to_agent="bob", message=_TEXT)

    async def append() -> object:
        return await writer.submit(Request(command, "agent:alice", "benchmark"))

    return [append] * callers


def _inserting(connection: psycopg.AsyncConnection[Any]) -> Append:
    data = orjson.dumps({"agent": "alice", "to_agent": "bob", "message": _TEXT}).decode()

    async def append() -> object:
        return await connection.execute(_INSERT, (data,), prepare=True)

    return append


def _measure(appends: Sequence[Append]) -> Measure:
    """Everyone appends again and again, one event at a time."""

    async def measure(seconds: float) -> Sample:
        latencies: list[float] = []
        started = perf_counter()

        async def caller(append: Append) -> None:
            before = perf_counter()
            while before < started + seconds:
                await append()
                now = perf_counter()
                latencies.append(now - before)
                before = now

        await asyncio.gather(*map(caller, appends))
        elapsed = perf_counter() - started
        latencies.sort()
        return {
            "per_second": len(latencies) / elapsed,
            "p50_ms": percentile(latencies, 50) * 1000,
            "p99_ms": percentile(latencies, 99) * 1000,
        }

    return measure


BENCHMARK = Benchmark(
    name="appends-in-process",
    title="Durable appends without HTTP, 200 bytes, a notification included",
    figure="per_second",
    baseline=BEST,
    best_of={BEST: [_plain(count) for count in CONNECTIONS]},
    prepare=_prepare,
)

"""Durable appends without HTTP, compared with one transaction per event and with a library.

The writer decides, hashes, appends, and notifies once a batch. Its log alone appends the same events
without deciding or folding them. The transaction is measured as it is usually written, in four round
trips, and as one autocommitted statement that inserts the same payload and notifies, in a single round
trip: the best that psycopg can do event by event. The library, `eventsourcing`, appends single events
from threads, as applications built on it do; it decides nothing either. Statement and library are
measured at several numbers of connections or threads, and the best result counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from uuid_utils import uuid7

from benchmarks import stage
from benchmarks.harness import Benchmark, Contender, percentile
from eventstore import codec, log, schema
from eventstore.chain import hash_of
from eventstore.connection import Connection, connect
from eventstore.events import MessageSent
from eventstore.listener import Hints
from eventstore.recorded import EMPTY_LOG, Recorded
from service.background import background
from service.clock import DatabaseClock
from service.commands import SendMessage, SetPolicy
from service.requests import Request
from service.writing.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from benchmarks.harness import Measure, Plan, Sample

SQUAD_SCHEMA = "squad"
LOG_SCHEMA = "squad_log"
LOG_ALONE = "log alone, 1 caller"
CALLERS = (1, 64, 512)
CONNECTIONS = (1, 8, 32)
THREADS = (1, 4, 16)
AS_WRITTEN = "BEGIN to COMMIT, 1 connection"
BEST = "INSERT + NOTIFY, best"
LIBRARY = "eventsourcing, best"

_TEXT = "x" * 200
_DATA = orjson.dumps({"agent": "alice", "to_agent": "bob", "message": _TEXT}).decode()
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
async def _prepare(_: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        writer = await stack.enter_async_context(_writer(dsn))
        chaining = await stack.enter_async_context(_log_alone(dsn))
        connections = await stack.enter_async_context(_connections(dsn, max(CONNECTIONS)))
        recorder = stack.enter_context(_recorder(dsn))
        yield (
            *(Contender(_squad(callers), _measure(_submitting(writer, callers))) for callers in CALLERS),
            Contender(LOG_ALONE, _measure([chaining])),
            Contender(AS_WRITTEN, _measure([_in_a_transaction(connections[0])])),
            *(
                Contender(_plain(number), _measure([_inserting(one) for one in connections[:number]]))
                for number in CONNECTIONS
            ),
            *(Contender(_library(threads), _measure_threads(recorder, threads)) for threads in THREADS),
        )


def _squad(callers: int) -> str:
    return f"squad, {callers} callers" if callers > 1 else "squad, 1 caller"


def _plain(connections: int) -> str:
    return f"INSERT + NOTIFY, {connections} connection{'s' if connections > 1 else ''}"


def _library(threads: int) -> str:
    return f"eventsourcing, {threads} thread{'s' if threads > 1 else ''}"


@asynccontextmanager
async def _writer(dsn: str) -> AsyncIterator[Writer]:
    await schema.apply(dsn, SQUAD_SCHEMA)
    writer = Writer(dsn, SQUAD_SCHEMA, DatabaseClock(), Hints())
    async with background(writer.run()):
        await writer.submit(Request(SetPolicy(daily_tokens=0), "system:benchmark", "benchmark"))
        yield writer


@asynccontextmanager
async def _log_alone(dsn: str) -> AsyncIterator[Append]:
    await schema.apply(dsn, LOG_SCHEMA)
    async with await connect(dsn, LOG_SCHEMA, name="squad benchmark") as connection:
        yield _chaining(connection)


@asynccontextmanager
async def _connections(dsn: str, number: int) -> AsyncIterator[list[psycopg.AsyncConnection[Any]]]:
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
            for _ in range(number)
        ]
        await opened[0].execute(_TABLE)
        yield opened


def _submitting(writer: Writer, callers: int) -> list[Append]:
    command = SendMessage(from_agent="alice", to_agent="bob", message=_TEXT)

    async def append() -> object:
        return await writer.submit(Request(command, "agent:alice", "benchmark"))

    return [append] * callers


def _chaining(connection: Connection) -> Append:
    """Append what the writer appends for such a message, without deciding or folding it."""
    position, latest = 0, EMPTY_LOG.hash
    clock = DatabaseClock()

    async def append() -> None:
        nonlocal position, latest
        position, now = position + 1, clock.now()
        event = MessageSent(
            message_id=str(uuid7()), agent="alice", to_agent="bob", message=_TEXT, task_id=None, data=None
        )
        unchained = Recorded(
            position,
            id=str(uuid7()),
            stream=event.stream,
            version=1,
            type=event.type,
            schema_version=event.schema_version,
            data=codec.encode(event),
            actor="agent:alice",
            caused_by=None,
            correlation_id="benchmark",
            idempotency_key=None,
            recorded_at=now,
            hash=b"",
        )
        latest = hash_of(latest, unchained)
        sent_at = monotonic()
        database_time = await log.append(connection, [unchained._replace(hash=latest)], now)
        clock.adjust(database_time, sent_at, monotonic())

    return append


def _in_a_transaction(connection: psycopg.AsyncConnection[Any]) -> Append:
    async def append() -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO plain_events (data) VALUES (%s)", (_DATA,), prepare=True)
            await connection.execute("NOTIFY plain_events")

    return append


def _inserting(connection: psycopg.AsyncConnection[Any]) -> Append:
    async def append() -> object:
        return await connection.execute(_INSERT, (_DATA,), prepare=True)

    return append


@contextmanager
def _recorder(dsn: str) -> Iterator[PostgresApplicationRecorder]:
    """The library's recorder, which numbers events under a table lock and notifies."""
    where = psycopg.conninfo.conninfo_to_dict(dsn)
    with PostgresDatastore(
        dbname=str(where.get("dbname", "postgres")),
        host=str(where["host"]),
        port=str(where.get("port", 5432)),
        user=str(where["user"]),
        password=str(where.get("password", "")),
        pool_size=max(THREADS),
    ) as datastore:
        recorder = PostgresApplicationRecorder(datastore)
        recorder.create_table()
        yield recorder


def _measure_threads(recorder: PostgresApplicationRecorder, threads: int) -> Measure:
    """Every thread appends one event at a time in a loop, to a stream of its own."""
    state = _DATA.encode()

    def append_until(deadline: float) -> list[float]:
        stream, latencies, before = uuid4(), list[float](), perf_counter()
        for version in count(1):
            recorder.insert_events([StoredEvent(stream, version, "benchmark:MessageSent", state)])
            now = perf_counter()
            latencies.append(now - before)
            before = now
            if now >= deadline:
                break
        return latencies

    async def measure(seconds: float) -> Sample:
        started = perf_counter()
        with ThreadPoolExecutor(max_workers=threads) as executor:
            loop = asyncio.get_running_loop()
            found = await asyncio.gather(
                *(loop.run_in_executor(executor, append_until, started + seconds) for _ in range(threads))
            )
        return _sample([latency for latencies in found for latency in latencies], perf_counter() - started)

    return measure


def _sample(latencies: list[float], elapsed: float) -> Sample:
    latencies.sort()
    return {
        "per_second": len(latencies) / elapsed,
        "p50_ms": percentile(latencies, 50) * 1000,
        "p99_ms": percentile(latencies, 99) * 1000,
    }


def _measure(appends: Sequence[Append]) -> Measure:
    """Every caller appends one event at a time in a loop."""

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
        return _sample(latencies, perf_counter() - started)

    return measure


BENCHMARK = Benchmark(
    name="appends-in-process",
    title="Durable appends without HTTP, 200 bytes, a notification included",
    figure="per_second",
    baseline=BEST,
    best_of={
        BEST: [_plain(connections) for connections in CONNECTIONS],
        LIBRARY: [_library(threads) for threads in THREADS],
    },
    beside=(AS_WRITTEN, _plain(1), LIBRARY),
    aims={
        (_squad(1), AS_WRITTEN): 1.0,
        (LOG_ALONE, AS_WRITTEN): 1.0,
        (_squad(1), _plain(1)): 1.0,
        (_squad(512), BEST): 8.0,
        (_squad(512), LIBRARY): 25.0,
    },
    prepare=_prepare,
)

"""The import of a log from JSON Lines, compared with the server copying the same rows between tables.

The import parses each line, checks its hash and that the event can be decoded, and sends it. The server
only inserts, into a table with the same keys, indexes and triggers. A measurement imports the whole log
once, into a new squad.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, islice
from time import perf_counter, process_time
from typing import TYPE_CHECKING

from psycopg import sql

from benchmarks import history, stage
from benchmarks.harness import Benchmark, Contender
from eventstore import schema, transfer
from eventstore.connection import connect
from service.cli.target import NO_TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from benchmarks.harness import Measure, Plan, Sample
    from eventstore.connection import Connection

EVENTS_A_SECOND = 25_000
"""The length of the log per second that a measurement should take."""

BATCH_EVENTS = 5_000
IMPORT, SERVER = f"import, {BATCH_EVENTS:,} lines at a time", "INSERT ... SELECT"

_SOURCE = "squad_source"
_INSERT = """
    INSERT INTO {target} (position, id, stream, version, type, schema_version, data, actor, caused_by,
        correlation_id, idempotency_key, recorded_at, hash)
    SELECT position, id, stream, version, type, schema_version, data, actor, caused_by,
        correlation_id, idempotency_key, recorded_at, hash
    FROM {source} ORDER BY position
"""
_schemas = (f"squad_{number}" for number in count())


@asynccontextmanager
async def _prepare(plan: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        async for _ in history.fill(dsn, _SOURCE, round(EVENTS_A_SECOND * plan.seconds)):
            pass
        lines: list[bytes] = []
        async with await connect(dsn, _SOURCE, name="squad benchmark", **NO_TIMEOUTS) as connection:
            exported = await transfer.export_log(connection, lines.append)

        async def import_(connection: Connection) -> None:
            await transfer.import_log(connection, _batches(lines))

        async def insert(connection: Connection) -> None:
            query = sql.SQL(_INSERT).format(
                target=sql.Identifier("events"), source=sql.Identifier(_SOURCE, "events")
            )
            await connection.execute(query)
            await connection.execute("ANALYZE events")

        yield (
            Contender(IMPORT, _measure(dsn, exported.events, import_)),
            Contender(SERVER, _measure(dsn, exported.events, insert)),
        )


async def _batches(lines: Sequence[bytes]) -> AsyncIterator[list[bytes]]:
    rest = iter(lines)
    while batch := list(islice(rest, BATCH_EVENTS)):
        yield batch


def _measure(dsn: str, events: int, work: Callable[[Connection], Awaitable[None]]) -> Measure:
    async def measure(_: float) -> Sample:
        name = next(_schemas)
        await schema.apply(dsn, name)
        async with await connect(dsn, name, name="squad benchmark", **NO_TIMEOUTS) as connection:
            await connection.execute("CHECKPOINT")
            started, used = perf_counter(), process_time()
            await work(connection)
            elapsed, used = perf_counter() - started, process_time() - used
            await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
        return {"per_second": events / elapsed, "our_cpu_us": used / events * 1_000_000}

    return measure


BENCHMARK = Benchmark(
    name="bulk-import",
    title="A whole log into a new squad",
    figure="per_second",
    baseline=SERVER,
    best_of={},
    aims={(IMPORT, SERVER): 0.5},
    prepare=_prepare,
)

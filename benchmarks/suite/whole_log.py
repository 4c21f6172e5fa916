"""The whole log read to verify it, fold it and rebuild the tables, compared with only reading it.

All read the same log (of `benchmarks.simulated_squad`), in the same pages, from the first event to the
last. The baseline reads and decodes the events and discards them. A measurement is one pass, however long
it takes.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter, process_time
from typing import TYPE_CHECKING

from benchmarks import history, stage
from benchmarks.harness import Benchmark, Contender
from eventstore import codec, log, verification
from eventstore.connection import connect
from projections.rebuild import rebuild
from service.cli.target import NO_TIMEOUTS
from service.history.time_travel import state_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from benchmarks.harness import Measure, Plan, Sample
    from eventstore.connection import Connection

EVENTS_A_SECOND = 125_000
"""The length of the log per second that a measurement should take. The fixed cost of a rebuild equals that
of 20,000 events, and would dominate in a short log."""

READ, VERIFY, FOLD, REBUILD = "read and decode", "verify", "state at the head", "rebuild all tables"

_SCHEMA = "squad"


@asynccontextmanager
async def _prepare(plan: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        async for _ in history.fill(dsn, _SCHEMA, round(EVENTS_A_SECOND * plan.seconds)):
            pass
        connection = await stack.enter_async_context(
            await connect(dsn, _SCHEMA, name="squad benchmark", **NO_TIMEOUTS)
        )
        events = await log.head_position(connection)

        async def rebuilt() -> None:
            await rebuild(dsn, _SCHEMA)

        async def read() -> None:
            await _read(connection)

        async def verify() -> None:
            await _verify(connection)

        async def fold() -> None:
            await state_at(connection, events)

        yield (
            Contender(READ, _measure(events, read)),
            Contender(VERIFY, _measure(events, verify)),
            Contender(FOLD, _measure(events, fold)),
            Contender(REBUILD, _measure(events, rebuilt)),
        )


async def _read(connection: Connection) -> None:
    position = 0
    while page := await log.read_after(connection, position):
        for recorded in page:
            codec.decode(recorded)
        position = page[-1].position


async def _verify(connection: Connection) -> None:
    async with verification.snapshot(connection):
        verified = await verification.verify_log(connection)
    assert verified.first_fault is None


def _measure(events: int, work: Callable[[], Awaitable[None]]) -> Measure:
    async def measure(_: float) -> Sample:
        started, used = perf_counter(), process_time()
        await work()
        elapsed, used = perf_counter() - started, process_time() - used
        return {"per_second": events / elapsed, "our_cpu_us": used / events * 1_000_000}

    return measure


BENCHMARK = Benchmark(
    name="whole-log",
    title="Once through the whole log",
    figure="per_second",
    baseline=READ,
    best_of={},
    aims={(REBUILD, READ): 0.4, (VERIFY, READ): 0.5, (FOLD, READ): 0.5},
    prepare=_prepare,
)

"""One, two and four service processes on one database, at 256 connections in all."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks import stage
from benchmarks.harness import Benchmark, Contender
from benchmarks.subjects import WRITES
from benchmarks.suite import commands_over_http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.harness import Plan

CONNECTIONS = 256
ALONE = "1 process"


@asynccontextmanager
async def _prepare(_: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:

        async def processes(count: int) -> list[stage.Server]:
            """Start that many on a database of their own, so that those not being measured are idle."""
            dsn = await stack.enter_async_context(stage.postgres())
            return [await stack.enter_async_context(stage.service(dsn)) for _ in range(count)]

        contenders = []
        for name, count in ((ALONE, 1), ("2 processes", 2), ("4 processes", 4)):
            servers = await processes(count)
            measure = commands_over_http.measure(servers, WRITES["message"], CONNECTIONS)
            contenders.append(Contender(name, measure))
        yield contenders


BENCHMARK = Benchmark(
    name="processes-over-http",
    title=f"Messages over HTTP: several processes on one database, {CONNECTIONS} connections in all",
    figure="per_second",
    baseline=ALONE,
    best_of={},
    aims={("2 processes", ALONE): 1.0, ("4 processes", ALONE): 0.8},
    prepare=_prepare,
)

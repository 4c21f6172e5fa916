"""Live reads over HTTP, compared with a bare handler that makes an answer of the same size."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import stage
from benchmarks.harness import Benchmark, Contender
from benchmarks.subjects import READS, WRITES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.harness import Measure, Plan

CONNECTIONS = 64
BARE = "bare aiohttp handler"


@asynccontextmanager
async def _prepare(path: str, _: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        service = await stack.enter_async_context(stage.service(dsn))
        bare = await stack.enter_async_context(stage.server("benchmarks.bare_server"))
        usage = WRITES["usage"]
        await stage.load(service, "POST", usage.path, usage.body, connections=1, seconds=0.05)
        yield (Contender("squad", _measure(service, path)), Contender(BARE, _measure(bare, path)))


def _measure(server: stage.Server, path: str) -> Measure:
    async def once(seconds: float) -> dict[str, float]:
        return await stage.load(server, "GET", path, connections=CONNECTIONS, seconds=seconds)

    return once


BENCHMARKS = tuple(
    Benchmark(
        name=f"{name}-over-http",
        title=f"Live reads over HTTP: GET {path}, {CONNECTIONS} connections",
        figure="per_second",
        baseline=BARE,
        best_of={},
        aims={("squad", BARE): 0.7},
        prepare=partial(_prepare, path),
    )
    for name, path in READS.items()
)

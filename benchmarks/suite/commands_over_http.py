"""Durable commands over HTTP, beside the same server without durability and decisions.

The bare handler is the ceiling for aiohttp and the model on this machine; the canned answer is the ceiling
of the load generator, which must lie far above both. Each is a process of its own, and so are Postgres and
the load generator, all on the same cores.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks import stage
from benchmarks.frame import Benchmark, Contender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.frame import Measure

CONNECTIONS = 64
PATH = "/api/v1/messages"
BODY = {"from_agent": "alice", "to_agent": "bob", "message": "x" * 200}


@asynccontextmanager
async def _prepare() -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        service = await stack.enter_async_context(stage.service(dsn))
        bare = await stack.enter_async_context(stage.server("benchmarks.bare_server"))
        canned = await stack.enter_async_context(stage.server("benchmarks.canned_server"))
        yield (
            Contender("squad", _measure(service)),
            Contender("bare aiohttp handler", _measure(bare)),
            Contender("canned answer", _measure(canned)),
        )


def _measure(server: stage.Server) -> Measure:
    async def measure(seconds: float) -> dict[str, float]:
        return await stage.load(server, PATH, BODY, connections=CONNECTIONS, seconds=seconds)

    return measure


BENCHMARK = Benchmark(
    name="commands-over-http",
    title=f"Commands over HTTP: POST {PATH}, 200 bytes, {CONNECTIONS} connections",
    figure="per_second",
    baseline="bare aiohttp handler",
    best_of={},
    prepare=_prepare,
)

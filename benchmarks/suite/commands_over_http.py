"""Durable commands over HTTP, compared with the same server without durability and decisions.

The bare handler is the ceiling for aiohttp and the model on this machine; the canned answer is the ceiling
of the load generator, which must be far above both. Each is a separate process, and so are Postgres and the
load generator, all on the same cores.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import stage
from benchmarks.harness import Benchmark, Contender
from benchmarks.subjects import WRITES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.harness import Measure, Plan
    from benchmarks.subjects import Write

CONNECTIONS = 64
BARE = "bare aiohttp handler"


@asynccontextmanager
async def _prepare(subject: Write, _: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        service = await stack.enter_async_context(stage.service(dsn))
        bare = await stack.enter_async_context(stage.server("benchmarks.bare_server"))
        canned = await stack.enter_async_context(stage.server("benchmarks.canned_server"))
        yield (
            Contender("squad", measure(service, subject)),
            Contender(BARE, measure(bare, subject)),
            Contender("canned answer", measure(canned, subject)),
        )


def measure(
    servers: stage.Server | Sequence[stage.Server], subject: Write, connections: int = CONNECTIONS
) -> Measure:
    """Send one write repeatedly."""

    async def once(seconds: float) -> dict[str, float]:
        return await stage.load(
            servers, "POST", subject.path, subject.body, connections=connections, seconds=seconds
        )

    return once


BENCHMARKS = tuple(
    Benchmark(
        name=f"{name}-over-http",
        title=f"Commands over HTTP: POST {subject.path}, {CONNECTIONS} connections",
        figure="per_second",
        baseline=BARE,
        best_of={},
        aims={("squad", BARE): 0.4},
        prepare=partial(_prepare, subject),
    )
    for name, subject in WRITES.items()
)

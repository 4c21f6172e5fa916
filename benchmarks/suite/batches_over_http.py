"""A hundred commands in one HTTP request, compared with one command a request, in commands a second."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks import stage
from benchmarks.harness import Benchmark, Contender
from benchmarks.subjects import WRITES
from benchmarks.suite import commands_over_http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.harness import Measure, Plan

COMMANDS = 100
CONNECTIONS = 8
"""So 800 commands are in flight, which is the maximum size of one batch of the writer."""

SINGLE = "single requests"


@asynccontextmanager
async def _prepare(_: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        service = await stack.enter_async_context(stage.service(dsn))
        yield (
            Contender(f"{COMMANDS} commands a request", _measure(service)),
            Contender(SINGLE, commands_over_http.measure(service, WRITES["message"])),
        )


def _measure(service: stage.Server) -> Measure:
    subject = WRITES["message"]
    command = {"method": "POST", "path": subject.path, "body": subject.body}
    body = {"commands": [command] * COMMANDS}

    async def once(seconds: float) -> dict[str, float]:
        found = await stage.load(
            service, "POST", "/api/v1/batch", body, connections=CONNECTIONS, seconds=seconds
        )
        return {
            **found,
            "per_second": found["per_second"] * COMMANDS,
            "server_cpu_us": found["server_cpu_us"] / COMMANDS,
        }

    return once


BENCHMARK = Benchmark(
    name="batches-over-http",
    title=f"Messages over HTTP: {COMMANDS} in one POST /api/v1/batch, beside one each",
    figure="per_second",
    baseline=SINGLE,
    best_of={},
    aims={(f"{COMMANDS} commands a request", SINGLE): 3.0},
    prepare=_prepare,
)

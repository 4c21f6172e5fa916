"""Commands over HTTP while a thousand event streams are open, compared with none.

In one case each stream is filtered to a different agent without events, so every event is matched against
every filter. In the other each stream receives all events, which at thousands of events a second is more
than can be delivered: such streams lag behind, and the service throttles them to leave time for commands.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp

from benchmarks import stage
from benchmarks.harness import Benchmark, Contender
from benchmarks.subjects import WRITES
from benchmarks.suite import commands_over_http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.harness import Measure, Plan, Sample

STREAMS = 1_000
_GONE_WITHIN_SECONDS = 30.0
NONE = "no stream"
OTHERS, EVERYTHING = f"{STREAMS:,} streams of other agents", f"{STREAMS:,} streams of everything"


@asynccontextmanager
async def _prepare(_: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        service = await stack.enter_async_context(stage.service(dsn))
        yield (
            Contender(NONE, commands_over_http.measure(service, WRITES["message"])),
            Contender(OTHERS, _measure(service, "agent=bystander")),
            Contender(EVERYTHING, _measure(service, "")),
        )


def _measure(service: stage.Server, query: str) -> Measure:
    commands = commands_over_http.measure(service, WRITES["message"])

    async def once(seconds: float) -> Sample:
        async with stage.server("benchmarks.stream_readers", service.url, str(STREAMS), query):
            found = await commands(seconds)
        await _all_gone(service)
        return found

    return once


async def _all_gone(service: stage.Server) -> None:
    """Wait until the service has noticed that all readers are gone, which takes it up to a second."""
    async with aiohttp.ClientSession(service.url) as session, asyncio.timeout(_GONE_WITHIN_SECONDS):
        while True:
            async with session.get("/metrics") as response:
                if "\nsquad_open_streams 0.0\n" in await response.text():
                    return
            await asyncio.sleep(0.05)


BENCHMARK = Benchmark(
    name="streams-over-http",
    title=f"Messages over HTTP while {STREAMS:,} event streams are open, 64 connections",
    figure="per_second",
    baseline=NONE,
    best_of={},
    aims={(OTHERS, NONE): 0.6, (EVERYTHING, NONE): 0.6},
    prepare=_prepare,
)

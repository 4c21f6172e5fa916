"""The time from a command's answer until its row is in the read table, compared with a bare notification.

Commands arrive at a steady thousand a second, whether the previous one was answered or not. The figure is
the median time, so the ratio says how many times as long as a notification it takes.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks import stage
from benchmarks.harness import Benchmark, Contender, percentile
from eventstore import schema
from eventstore.connection import connect
from eventstore.listener import Listener
from projections.projector import Projector
from service.background import background
from service.clock import DatabaseClock
from service.commands import SendMessage, SetPolicy
from service.requests import Request
from service.writing.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.harness import Measure, Plan, Sample
    from eventstore.connection import Connection

EVENTS_A_SECOND = 1_000
NOTIFICATION = "a notification alone"

_SCHEMA = "squad"
_CHANNEL = "there_and_back"


@asynccontextmanager
async def _prepare(_: Plan) -> AsyncIterator[Sequence[Contender]]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        await schema.apply(dsn, _SCHEMA)
        listener = Listener(dsn, _SCHEMA)
        writer = Writer(dsn, _SCHEMA, DatabaseClock(), listener.events)
        projector = Projector(dsn, _SCHEMA, listener.events)
        writer.on_known.append(projector.observe)
        work = (listener.run(), writer.run(), projector.run())
        await stack.enter_async_context(background(*work))
        await writer.submit(Request(SetPolicy(daily_tokens=0), "system:benchmark", "benchmark"))
        sender, receiver = [
            await stack.enter_async_context(await connect(dsn, _SCHEMA, name="benchmark")) for _ in range(2)
        ]
        await receiver.execute(f"LISTEN {_CHANNEL}")
        yield (
            Contender("append to table", _visible(writer, projector)),
            Contender(NOTIFICATION, _notified(sender, receiver)),
        )


def _visible(writer: Writer, projector: Projector) -> Measure:
    command = SendMessage(from_agent="alice", to_agent="bob", message="x" * 200)
    request = Request(command, "agent:alice", "benchmark")

    async def measure(seconds: float) -> Sample:
        found: list[float] = []

        async def one() -> None:
            outcome = await writer.submit(request)
            answered = perf_counter()
            assert outcome.position
            while not projector.active or min(projector.positions.values()) < outcome.position:
                await projector.advanced.waiter().wait()
            found.append(perf_counter() - answered)

        started = perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in count():
                due = started + number / EVENTS_A_SECOND
                if due > started + seconds:
                    break
                if (left := due - perf_counter()) > 0:
                    await asyncio.sleep(left)
                group.create_task(one())
        return _sample(found, perf_counter() - started)

    return measure


def _notified(sender: Connection, receiver: Connection) -> Measure:
    async def measure(seconds: float) -> Sample:
        found: list[float] = []
        started = perf_counter()
        while (before := perf_counter()) < started + seconds:
            await sender.execute("SELECT pg_notify(%s, '')", (_CHANNEL,), prepare=True)
            async for _ in receiver.notifies(timeout=5, stop_after=1):
                pass
            found.append(perf_counter() - before)
        return _sample(found, perf_counter() - started)

    return measure


def _sample(found: list[float], elapsed: float) -> Sample:
    found.sort()
    return {
        "per_second": len(found) / elapsed,
        "p50_ms": percentile(found, 50) * 1000,
        "p99_ms": percentile(found, 99) * 1000,
    }


BENCHMARK = Benchmark(
    name="append-to-visible",
    title=f"From the answer to the table, at {EVENTS_A_SECOND:,} events a second",
    figure="p50_ms",
    baseline=NOTIFICATION,
    best_of={},
    prepare=_prepare,
)

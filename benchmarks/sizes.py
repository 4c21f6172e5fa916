"""What the length of the log costs: `python -m benchmarks.sizes [--events N]... [--rounds N]
[--seconds S]`.

Each length has a squad with a log of that length (`benchmarks.history`), all in one Postgres. First the
time and the memory of a rebuild of the read tables are measured, then the time until a service is ready and
its memory, and then, on the squads in turn, the latency of commands. Ratios are to the first length, in the
same round.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import click
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import history, stage
from benchmarks.harness import Spread
from benchmarks.subjects import WRITES
from eventstore.connection import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Sample

LENGTHS = (10_000, 1_000_000, 5_000_000)
CONNECTIONS = (1, 64)

_LOOK_SECONDS = 0.05
_READY_WITHIN_SECONDS = 60.0
_MEGABYTE = 1024 * 1024


class Built(NamedTuple):
    """A squad's log and tables: their sizes, and what the rebuild took."""

    events: int
    log_bytes: int
    tables_bytes: int
    rebuild_seconds: float
    rebuild_peak_bytes: int


class Started(NamedTuple):
    """A service, and the seconds until it was ready."""

    server: stage.Server
    seconds: float


async def _build(dsn: str, squad_schema: str, events: int) -> Built:
    written = 0
    async for written in history.fill(dsn, squad_schema, events):
        click.echo(f"\r{written:,} of {events:,} events", nl=False, err=True)
    click.echo(err=True)
    seconds, peak = await _rebuild(dsn, squad_schema)
    async with await connect(dsn, squad_schema, name="squad benchmark", statement_timeout=0) as connection:
        await connection.execute("VACUUM ANALYZE")
        # Otherwise the services start while gigabytes are still being written to disk.
        await connection.execute("CHECKPOINT")
        cursor = await connection.execute(
            "SELECT pg_total_relation_size('events'), sum(pg_total_relation_size(c.oid))"
            " FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace"
        )
        row = await cursor.fetchone()
        assert row is not None
    return Built(written, row[0], int(row[1]) - row[0], seconds, peak)


async def _rebuild(dsn: str, squad_schema: str) -> tuple[float, int]:
    """Rebuild all tables in a separate process; return the seconds and its peak memory."""
    environment = {**os.environ, "SQUAD_SCHEMA": squad_schema}
    began = perf_counter()
    process = await asyncio.create_subprocess_exec(
        stage.SQUAD, "replay", f"--dsn={dsn}", env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    watched, peak = psutil.Process(process.pid), 0
    while process.returncode is None:
        try:
            peak = max(peak, watched.memory_info().rss)
            async with asyncio.timeout(_LOOK_SECONDS):
                await process.wait()
        except TimeoutError:
            continue
        except psutil.NoSuchProcess:
            break
    if await process.wait() != 0:
        raise stage.StageError("the replay failed")
    return perf_counter() - began, peak


async def _start(stack: AsyncExitStack, dsn: str, squad_schema: str) -> Started:
    began = perf_counter()
    server = await stack.enter_async_context(stage.service(dsn, SQUAD_SCHEMA=squad_schema))
    async with aiohttp.ClientSession() as session, asyncio.timeout(_READY_WITHIN_SECONDS):
        while True:
            async with session.get(f"{server.url}/readyz") as answer:
                if answer.status == 200:
                    return Started(server, perf_counter() - began)
            await asyncio.sleep(_LOOK_SECONDS)


async def _commands(server: stage.Server, connections: int, seconds: float) -> Sample:
    subject = WRITES["message"]
    return await stage.load(
        server, "POST", subject.path, subject.body, connections=connections, seconds=seconds
    )


async def measure(lengths: Sequence[int], rounds: int, seconds: float) -> None:
    """Measure, and print the tables."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(stage.postgres())
        built = {length: await _build(dsn, f"squad_{length}", length) for length in lengths}
        started: dict[int, Started] = {}
        resident: dict[int, int] = {}
        for length in lengths:
            started[length] = await _start(stack, dsn, f"squad_{length}")
            resident[length] = started[length].server.process.memory_info().rss
        found: dict[tuple[int, int], list[Sample]] = {}
        for number in range(rounds + 1):
            for connections in CONNECTIONS:
                for length in lengths:
                    sample = await _commands(started[length].server, connections, seconds)
                    # The first round warms up.
                    if number:
                        found.setdefault((length, connections), []).append(sample)
        console.print(_sizes(built, started, resident))
        for connections in CONNECTIONS:
            console.print(_latencies(lengths, connections, found))


def _sizes(built: dict[int, Built], started: dict[int, Started], resident: dict[int, int]) -> Table:
    table = Table(
        "events", "log MB", "tables MB", "bytes an event", "rebuild s", "events/s", "peak MB",
        "ready after s", "resident MB", "after load MB",
    )  # fmt: skip
    for length, one in built.items():
        after = started[length].server.process.memory_info().rss
        table.add_row(
            f"{one.events:,}",
            f"{one.log_bytes / _MEGABYTE:,.0f}",
            f"{one.tables_bytes / _MEGABYTE:,.0f}",
            f"{(one.log_bytes + one.tables_bytes) / one.events:,.0f}",
            f"{one.rebuild_seconds:.1f}",
            f"{one.events / one.rebuild_seconds:,.0f}",
            f"{one.rebuild_peak_bytes / _MEGABYTE:.0f}",
            f"{started[length].seconds:.2f}",
            f"{resident[length] / _MEGABYTE:.0f}",
            f"{after / _MEGABYTE:.0f}",
        )
    return table


def _latencies(
    lengths: Sequence[int], connections: int, found: dict[tuple[int, int], list[Sample]]
) -> Table:
    title = f"messages, {connections} connection{'s' if connections > 1 else ''}"
    table = Table("events", "a second", "p50 ms", "p99 ms", "p50 to the first", title=title)
    first = found[lengths[0], connections]
    for length in lengths:
        samples = found[length, connections]
        ratio = Spread.of(
            ours["p50_ms"] / theirs["p50_ms"] for ours, theirs in zip(samples, first, strict=True)
        )
        medians = (Spread.of(sample[name] for sample in samples).median for name in _FIGURES)
        table.add_row(
            f"{length:,}",
            *(f"{value:,.2f}" for value in medians),
            f"{ratio.median:.2f} ({ratio.least:.2f} .. {ratio.most:.2f})",
        )
    return table


_FIGURES = ("per_second", "p50_ms", "p99_ms")


@click.command()
@click.option(
    "--events", type=click.IntRange(min=1), multiple=True, default=LENGTHS, help="Lengths of the log."
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Rounds of commands.  [5]")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=2.0, help="Length of a measurement.  [2]"
)
def main(*, events: tuple[int, ...], rounds: int, seconds: float) -> None:
    """Measure what the length of the log costs; the default lengths take about a quarter of an hour."""
    uvloop.run(measure(events, rounds, seconds))


if __name__ == "__main__":
    main()

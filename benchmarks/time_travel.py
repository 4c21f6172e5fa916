"""How long past states take to read: `python -m benchmarks.time_travel [--dsn DSN | --data FOLDER]`.

Runs on a squad with a long history (`python -m benchmarks.history`), whose snapshots it deletes. Measures
the state at a few random positions without snapshots, then one fold of the whole log that writes them, then
the state at many random positions with them. Besides the elapsed time it shows the processor time of this
process, which is meaningful on a busy machine too.
"""

from __future__ import annotations

import resource
import statistics
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import TYPE_CHECKING, NamedTuple

import click
import uvloop
from rich.console import Console
from rich.table import Table

from eventstore import log
from eventstore.connection import connect
from service.database import database
from service.history.folding import snapshot_writer
from service.history.time_travel import state_at
from service.settings import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from service.history.folding import StoreSnapshot


class Took(NamedTuple):
    """The time that one state took."""

    seconds: float
    processor_seconds: float


async def _measure(connection: Connection, position: int, keep: StoreSnapshot | None = None) -> Took:
    started, used = perf_counter(), process_time()
    squad = await state_at(connection, position, keep)
    assert squad.head.position == position
    return Took(perf_counter() - started, process_time() - used)


async def _sizes(connection: Connection) -> tuple[int, int, int]:
    cursor = await connection.execute(
        "SELECT count(*), pg_total_relation_size('snapshots'), pg_total_relation_size('events')"
        " FROM snapshots"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def _row(name: str, took: Sequence[Took]) -> tuple[str, ...]:
    columns = [name, str(len(took))]
    for values in zip(*took, strict=True):
        columns += [f"{min(values):.3f}", f"{statistics.median(values):.3f}", f"{max(values):.3f}"]
    return tuple(columns)


async def measure(dsn: str, squad_schema: str, without: int, positions: int, seed: int) -> None:
    """Measure, and print a table."""
    console, random = Console(), Random(seed)
    async with await connect(dsn, squad_schema, name="squad benchmark") as connection:
        head = await log.head_position(connection)
        await connection.execute("TRUNCATE snapshots")
        places = [random.randint(1, head) for _ in range(positions)]
        slow = [await _measure(connection, place) for place in places[:without]]
        whole = await _measure(connection, head, await snapshot_writer(connection))
        count, size, log_size = await _sizes(connection)
        fast = [await _measure(connection, place) for place in places]
    table = Table("", "states", "min s", "median s", "max s", "cpu min", "cpu median", "cpu max")
    if slow:
        table.add_row(*_row("without snapshots", slow))
    table.add_row(*_row("with snapshots", fast))
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    click.echo(
        f"{head:,} events folded and snapshots written in {whole.seconds:.1f} s"
        f" ({whole.processor_seconds:.1f} s of processor time)\n"
        f"{count} snapshots, {size / 1e6:.1f} MB for a log of {log_size / 1e6:.0f} MB;"
        f" peak memory {peak:.0f} MB"
    )


@click.command()
@click.option(
    "--without", type=click.IntRange(min=0), default=3, help="Number of states without snapshots.  [3]"
)
@click.option(
    "--positions", type=click.IntRange(min=1), default=20, help="Number of states with snapshots.  [20]"
)
@click.option("--seed", type=int, default=0, help="Seed of the positions.  [0]")
@click.option("--config", type=click.Path(path_type=Path), help="The settings file.")
@click.option("--data", type=click.Path(path_type=Path), help="The folder of the embedded Postgres.")
@click.option("--dsn", help="The database; by default, the embedded Postgres.")
def main(
    *,
    without: int,
    positions: int,
    seed: int,
    config: Path | None,
    data: Path | None,
    dsn: str | None,
) -> None:
    """Measure reading past states of a squad that has a history."""
    settings = read(config, dsn=dsn, data=data)

    async def work() -> None:
        async with database(settings) as found:
            await measure(found, settings.squad_schema, without, positions, seed)

    uvloop.run(work())


if __name__ == "__main__":
    main()

"""A log of any length: `python -m benchmarks.history --events N [--dsn DSN | --data FOLDER]`.

The events are those of a squad in `benchmarks.simulated_squad`. They differ from a real log only in their
clock, which is simulated so that the log ends about now, and in that they are written with COPY
instead of appended. The same seed gives the same events, except for their times.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING
from uuid import UUID

import click
import uvloop

from benchmarks.simulated_squad import SimulatedSquad
from eventstore import log, schema
from eventstore.connection import connect
from eventstore.recorded import Recorded
from eventstore.translation import translating
from service.database import database
from service.settings import read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from eventstore.connection import Connection

SECONDS_BETWEEN_EVENTS = 0.5
"""The average; a million events span six days."""

_EVENTS_OF_A_BATCH = 20
"""About how many events a batch gives; it only affects the pauses between batches."""

_COPIED_AT_ONCE = 20_000
_COLUMNS = ", ".join(Recorded._fields)
_COPY = f"COPY events ({_COLUMNS}) FROM STDIN (FORMAT BINARY)"
# `data` is sent as text, because psycopg would serialize it once more if its type were json.
_TYPES = (
    *("int8", "uuid", "text", "int8", "text", "int2", "text", "text", "int8", "text", "text"),
    *("timestamptz", "bytea"),
)


def chronicle(
    events: int, until: datetime, *, seed: int = 0, open_things: int = 100
) -> Iterator[list[Recorded]]:
    """Yield batches with at least `events` events in all, the last one recorded at `until`."""
    squad, random = SimulatedSquad(seed, open_things=open_things), Random(seed)
    now = until - timedelta(seconds=SECONDS_BETWEEN_EVENTS * events)
    batch = squad.first(now)
    yield batch
    written = len(batch)
    while written < events:
        # An occasional lull, in which claims expire and agents become idle.
        lull = random.choice((20, 100)) if random.random() < 0.005 else 1
        pace = (until - now) / max(1, events - written)
        now = min(now + pace * _EVENTS_OF_A_BATCH * random.uniform(0.2, 1.8) * lull, until)
        batch = squad.more(now)
        written += len(batch)
        if batch:
            yield batch


async def fill(
    dsn: str, squad_schema: str, events: int, *, seed: int = 0, open_things: int = 100
) -> AsyncIterator[int]:
    """Fill the log of a squad that is empty or does not exist; yield the number of events so far.

    The read tables stay as they are until a service is started or a replay brings them up to date.

    Raises:
        ValueError: the squad already has events.
    """
    await schema.apply(dsn, squad_schema)
    async with await connect(dsn, squad_schema, name="squad history", statement_timeout=0) as connection:
        if await log.head_position(connection):
            raise ValueError(f"the squad in schema {squad_schema} already has events")
        written, page = 0, list[Recorded]()
        for batch in chronicle(events, await log.clock(connection), seed=seed, open_things=open_things):
            page += batch
            if len(page) >= _COPIED_AT_ONCE:
                written += await copy_in(connection, page)
                yield written
                page.clear()
        if page:
            written += await copy_in(connection, page)
        await connection.execute("ANALYZE events")
        yield written


async def copy_in(connection: Connection, page: list[Recorded]) -> int:
    """Copy events that follow the head into the log; return their number."""
    with translating():
        async with connection.transaction(), connection.cursor() as cursor:
            await log.lock(connection)
            async with cursor.copy(_COPY) as copy:
                copy.set_types(_TYPES)
                for recorded in page:
                    await copy.write_row((*recorded[:1], UUID(recorded.id), *recorded[2:]))
            await cursor.execute("SELECT pg_notify(log_channel(), %s)", (str(page[-1].position),))
    return len(page)


@click.command()
@click.option(
    "--events", type=click.IntRange(min=1), default=1_000_000, help="Number of events.  [1000000]"
)
@click.option(
    "--open",
    "open_things",
    type=click.IntRange(min=0),
    default=100,
    help="Number of open tasks, and of open e-mails.  [100]",
)
@click.option("--seed", type=int, default=0, help="Seed of the history.  [0]")
@click.option("--config", type=click.Path(path_type=Path), help="The settings file.")
@click.option("--data", type=click.Path(path_type=Path), help="The folder of the embedded Postgres.")
@click.option("--dsn", help="The database; by default, the embedded Postgres.")
def main(
    *, events: int, open_things: int, seed: int, config: Path | None, data: Path | None, dsn: str | None
) -> None:
    """Fill an empty squad with a long history."""
    settings = read(config, dsn=dsn, data=data)

    async def work() -> None:
        started = perf_counter()
        async with database(settings) as found:
            async for written in fill(
                found, settings.squad_schema, events, seed=seed, open_things=open_things
            ):
                seconds = perf_counter() - started
                click.echo(f"{written:,} events in {seconds:.0f} s, {written / seconds:,.0f} a second")

    try:
        uvloop.run(work())
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

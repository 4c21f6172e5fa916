"""`squad export` and `squad import`: the whole log as a file, and back."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eventstore import log, schema
from eventstore.connection import connect
from eventstore.importing import ImportedLog
from eventstore.transfer import export_log, import_log
from projections.filling import fill
from service.cli import progress
from service.cli.files import STANDARD, display_name, open_output, read_lines
from service.cli.parameters import Integer
from service.cli.running import run
from service.cli.target import NO_TIMEOUTS, command_dsn, open_squad, target_options
from service.database import StartFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.recorded import Head
    from eventstore.transfer import Exported
    from service.cli.target import Target

_FILE = click.Path(path_type=Path)


@click.command("export")
@click.argument("file", type=_FILE)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "cloudevents"]),
    default="jsonl",
    help="The format of a line: an event for squad import, or a CloudEvent.  [default: jsonl]",
)
@click.option("--after", type=Integer(min=0), default=0, help="Begin after this position.")
@click.option("--until", type=Integer(min=1), help="End with this position.")
@click.option(
    "--without-keys",
    is_flag=True,
    help="Omit the keys of encrypted payloads, so that nobody can read those from this file.",
)
@target_options
def export_command(
    *,
    file: Path,
    form: str,
    without_keys: bool,
    after: int,
    until: int | None,
    target: Target,
) -> None:
    """Write the log to FILE as JSON Lines.

    The file is compressed if its name ends in .gz; - is stdout.
    """
    if until is not None and until < after:
        raise click.UsageError(f"--until {until} is before --after {after}")

    async def work() -> Exported:
        async with open_squad(target, **NO_TIMEOUTS) as (connection, _, _):
            head = await log.head_position(connection)
            if after > head:
                raise StartFailed(f"there is nothing after position {after}: the log ends at {head}")
            total = min(head, until or head) - after
            with open_output(file) as opened, progress.show("exporting") as report:
                return await export_log(
                    connection,
                    opened.write,
                    after=after,
                    until=until,
                    cloud_events=form == "cloudevents",
                    with_keys=not without_keys,
                    report=lambda done: report(done, total),
                )

    done = run(work())
    if done.broken_at is not None:
        raise StartFailed(
            f"{display_name(file, 'output')} was written but cannot be imported: at position"
            f" {done.broken_at} the hash does not match the event and the previous hash"
        )
    click.echo(
        f"exported {done.events:,} events, up to position {done.end.position:,}", err=file == STANDARD
    )


@click.command("import")
@click.argument("file", type=_FILE)
@target_options
def import_command(file: Path, target: Target) -> None:
    """Import a log from FILE into a new squad.

    FILE is one that squad export wrote; - is stdin. The log is imported as a whole or not at all.
    """
    chosen = target.settings()

    async def work() -> Head:
        # Check the file first: one that is not valid must not leave a new database behind.
        incoming = read_lines(file)
        first: list[bytes] = await anext(incoming, [])
        ImportedLog().validate_line(first[0] if first else b"")
        async with command_dsn(chosen) as found:
            await schema.apply(found, chosen.squad_schema)
            connection = await connect(found, chosen.squad_schema, name="squad import", **NO_TIMEOUTS)
            async with connection:
                with ExitStack() as bar:
                    report = bar.enter_context(progress.show("importing"))

                    async def follow(head: int) -> None:
                        bar.close()
                        await fill(connection, head, bar.enter_context(progress.show("the tables")))

                    chunks = _chained(first, incoming)
                    head = await import_log(connection, chunks, lambda done: report(done, None), follow)
        return head

    head = run(work())
    click.echo(f"imported {head.position:,} events and built the tables; last hash {head.hash.hex()}")


async def _chained(first: list[bytes], rest: AsyncIterator[list[bytes]]) -> AsyncIterator[list[bytes]]:
    yield first
    async for chunk in rest:
        yield chunk

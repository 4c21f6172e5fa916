"""`squad replay`: rebuild read tables from the log."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import click
from rich.table import Table

from projections import PROJECTIONS
from projections.rebuild import rebuild
from service.cli import progress
from service.cli.output import tables
from service.cli.running import run
from service.cli.target import open_squad, target_options
from service.database import StartFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from projections import Projection
    from projections.rebuild import Rebuilt
    from service.cli.target import Target


@click.command()
@click.argument("names", metavar="[PROJECTION]...", nargs=-1)
@target_options
def replay(names: tuple[str, ...], target: Target) -> None:
    """Rebuild read tables from the log, while the service runs.

    Without a name, rebuild those of all projections. Readers see the old rows until the new ones are
    complete.
    """
    selected = _named(names)

    async def work() -> Rebuilt:
        async with open_squad(target) as (_, chosen, found):
            with progress.show("replaying") as report:
                return await rebuild(found, chosen.squad_schema, selected, progress=report)

    began = monotonic()
    rebuilt = run(work())
    click.echo(
        f"replayed {rebuilt.position:,} events into the tables of"
        f" {', '.join(projection.name for projection in selected)} in {monotonic() - began:.1f} s"
    )
    tables().print(_table(rebuilt))
    if rebuilt.were_wrong:
        click.echo(
            "Rows differed from the log, or were not up to date. A process that has started from wrong rows"
            " still decides by them: if somebody changed the tables, restart every process."
        )
    if rebuilt.lost:
        raise StartFailed(
            "the rows are right, but indexes are missing that only the owner of the tables can recreate:"
            f" {', '.join(index.name for index in rebuilt.lost)}"
        )


def _named(names: Sequence[str]) -> list[Projection]:
    """Return the named projections, in their own order; all of them if there are no names."""
    known = {projection.name: projection for projection in PROJECTIONS}
    for name in names:
        if name not in known:
            raise click.BadParameter(
                f"there is no projection {name!r}; known are {', '.join(known)}", param_hint="PROJECTION"
            )
    return [projection for projection in PROJECTIONS if not names or projection.name in names]


def _table(rebuilt: Rebuilt) -> Table:
    table = Table("table", "rows", "written", "removed", title=f"Read tables at {rebuilt.position:,}")
    for replaced in rebuilt.tables:
        table.add_row(
            replaced.table, f"{replaced.rows:,}", f"{replaced.written:,}", f"{replaced.removed:,}"
        )
    return table

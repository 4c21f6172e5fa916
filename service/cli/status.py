"""`squad status`: the squad on one screen."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click
from psycopg.conninfo import make_conninfo
from rich.table import Table
from rich.text import Text

from eventstore import log
from projections.progress import is_maintained
from service.cli import screen
from service.cli.output import printable, safe, tables
from service.cli.running import run
from service.cli.target import open_squad, target_options
from service.history.restore import catch_up, restore

if TYPE_CHECKING:
    from datetime import datetime

    from service.cli.target import Target
    from service.memory.squad import Squad

_NOT_SERVED = Text(
    "no process serves the squad: no job runs, and the read tables stand still; start one with `squad up`",
    style="red",
)
_POSITIONS = "SELECT name, position, error FROM projections ORDER BY name"


@click.command()
@target_options
def status(target: Target) -> None:
    """Show the squad on one screen.

    That is agents, budget, operations, jobs, the lag of the read tables, and how to query the embedded
    Postgres.
    """

    async def work() -> tuple[Squad, datetime, bool, list[tuple[Any, ...]], str | None]:
        async with open_squad(target) as (connection, settings, dsn):
            squad = await restore(connection)
            # Read before the log's end; otherwise tables could appear to be ahead of it.
            cursor = await connection.execute(_POSITIONS)
            positions = await cursor.fetchall()
            await catch_up(connection, squad)
            psql = None if settings.dsn else _psql(dsn, settings.squad_schema)
            return squad, await log.clock(connection), await is_maintained(connection), positions, psql

    squad, now, is_served, projections, psql = run(work())
    console = tables()
    console.print(screen.headline(squad))
    if not is_served:
        console.print(_NOT_SERVED)
    console.print(screen.agents(squad, now))
    console.print(screen.operations(squad, now))
    console.print(screen.jobs(squad, now))
    console.print(_lag(squad, projections))
    if psql:
        # On a single line, to be copied.
        click.echo(f"\nto query it while `squad up` runs:\n{printable(psql)}")


def _psql(dsn: str, schema: str) -> str:
    """Return the command that queries the tables of a squad."""
    return f"psql {shlex.quote(make_conninfo(dsn, options=f'-csearch_path={schema}'))}"


def _lag(squad: Squad, projections: list[tuple[Any, ...]]) -> Table:
    table = Table("projection", "position", "lag", "error", title="Read tables")
    for name, position, error in projections:
        table.add_row(name, str(position), str(squad.head.position - position), safe(error or ""))
    return table

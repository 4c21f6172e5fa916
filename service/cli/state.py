"""`squad state`: the squad as it was."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from eventstore import log
from service import views
from service.cli import screen
from service.cli.output import tables
from service.cli.parameters import Moment
from service.cli.running import run
from service.cli.target import open_squad, target_options
from service.history.folding import BeyondTheLog, snapshot_writer
from service.history.time_travel import PastSquad, squad_at
from service.http.json import dumps

if TYPE_CHECKING:
    from service.cli.target import Target

_MAX_POSITION = 2**63 - 1


class PositionOrTime(click.ParamType[int | datetime]):
    """A place in the log: a position or a time."""

    name = "position or time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | datetime:
        """Return the position, or the time in UTC."""
        if isinstance(value, int):
            return value
        if isinstance(value, str) and re.fullmatch("[0-9]+", value):
            if len(value) > len(str(_MAX_POSITION)) or int(value) > _MAX_POSITION:
                self.fail(f"{value:.30} is too large for a position", param, ctx)
            return int(value)
        return Moment().convert(value, param, ctx)


@click.command()
@click.option(
    "--at",
    type=PositionOrTime(),
    help="A position, or a time: RFC 3339, or 15m, 2h, 1d ago.  [default: the end of the log]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as the API does.")
@target_options
def state(
    *,
    at: int | datetime | None,
    as_json: bool,
    target: Target,
) -> None:
    """Show the whole squad as it was at a position or time."""

    async def work() -> tuple[PastSquad, datetime]:
        async with open_squad(target) as (connection, _, _):
            then = await squad_at(connection, at, store_snapshot=await snapshot_writer(connection))
            return then, await log.clock(connection)

    try:
        # A long stretch of the log without snapshots takes a while.
        with Console(stderr=True).status("reading the log"):
            then, clock = run(work())
    except BeyondTheLog as error:
        raise click.BadParameter(str(error), param_hint="'--at'") from error
    squad = then.squad
    moment = clock if at is None else then.moment
    if as_json:
        click.echo(dumps(views.full_state(squad, moment)).decode())
        return
    console = tables()
    if moment is None or not squad.head.position:
        console.print("there is nothing before the first event")
        return
    console.print(f"as of {moment:%Y-%m-%d %H:%M:%S.%f}Z")
    console.print(screen.headline(squad))
    console.print(screen.agents(squad, moment))
    console.print(screen.operations(squad, moment))
    for table in screen.open_work(squad, moment):
        console.print(table)

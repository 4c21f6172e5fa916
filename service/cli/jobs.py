"""`squad jobs`: the schedule, and a person's hand on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventstore import log
from projections import storage
from projections.jobs import JOBS, RUNS
from service import settings, views
from service.app import StartFailed
from service.cli.common import database_options, open_squad, run
from service.http.json import dumps
from service.http.v1.jobs import LAST_RUNS
from service.restore import catch_up, restore

if TYPE_CHECKING:
    from pathlib import Path

    from service.settings import Settings

_COLOURS = {"succeeded": "green", "running": "cyan", "skipped": "yellow", "missed": "yellow"}


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@database_options
@click.pass_context
def jobs(
    context: click.Context, *, as_json: bool, dsn: str | None, data: Path | None, config: Path | None
) -> None:
    """Show the schedule; run, pause or resume a job."""
    if context.invoked_subcommand is not None:
        return

    async def work() -> list[dict[str, Any]]:
        async with open_squad(config, dsn, data) as (connection, _, _):
            squad = await restore(connection)
            await catch_up(connection, squad)
            now = await log.clock(connection)
            shown = []
            for row in sorted(squad.all(JOBS), key=lambda job: job.name):
                last = await storage.newest(connection, RUNS, "job", row.name, "fencing_token", LAST_RUNS)
                shown.append(views.job(row, [item._asdict() for item in last], now))
            return shown

    found = run(work())
    if as_json:
        click.echo("\n".join(dumps(job).decode() for job in found))
    else:
        Console().print(_table(found))


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table("job", "when", "agent", "last runs, the newest first", "next", title="Jobs")
    for job in found:
        when = job["cron"] or f"every {job['every_seconds']:g} s"
        runs = Text(", ").join(
            Text(item["status"], _COLOURS.get(item["status"], "red")) for item in job["last_runs"]
        )
        coming = f"{job['next_ticks'][0]:%Y-%m-%d %H:%M:%S}Z" if job["next_ticks"] else "-"
        if job["paused"]:
            coming = f"paused: {job['pause_note'] or 'no note'}"
        table.add_row(Text(job["name"]), when, Text(job["agent"] or "-"), runs, Text(coming))
    return table


@jobs.command("run")
@click.argument("name")
@database_options
def run_job(name: str, dsn: str | None, data: Path | None, config: Path | None) -> None:
    """Run a job now, on the service that is running."""
    _ask(name, "run", {}, settings.read(config, dsn=dsn, data=data))


@jobs.command()
@click.argument("name")
@click.option("--note", help="Why; it is shown with the job and kept in the log.")
@database_options
def pause(name: str, note: str | None, dsn: str | None, data: Path | None, config: Path | None) -> None:
    """Skip a job's ticks from here on."""
    _ask(name, "pause", {"note": note}, settings.read(config, dsn=dsn, data=data))


@jobs.command()
@click.argument("name")
@click.option("--note", help="Why; it is kept in the log.")
@database_options
def resume(name: str, note: str | None, dsn: str | None, data: Path | None, config: Path | None) -> None:
    """Run a job's ticks again."""
    _ask(name, "resume", {"note": note}, settings.read(config, dsn=dsn, data=data))


def _ask(name: str, verb: str, body: dict[str, Any], chosen: Settings) -> None:
    """Asks the running service: only it can carry a run out."""
    url = f"http://{chosen.host}:{chosen.port}/api/v1/jobs/{name}/{verb}"

    async def work() -> Any:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.post(url, json={k: v for k, v in body.items() if v}) as response:
                    return response.status, orjson.loads(await response.read())
            except aiohttp.ClientError as error:
                raise StartFailed(f"no service answers on {chosen.host}:{chosen.port}: {error}") from error

    status, answer = run(work())
    if status >= 400:
        raise StartFailed(answer["detail"])
    click.echo(dumps(answer).decode())

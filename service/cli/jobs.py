"""`squad jobs`: the schedule, and a person's hand on it."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

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
    from collections.abc import Callable

    from service.settings import Settings

F = TypeVar("F", bound="Callable[..., Any]")

_PATIENCE = aiohttp.ClientTimeout(total=30)
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


def service_options(command: F) -> F:
    """`--host`, `--port` and `--config`, as `squad up` was told: only a running service runs jobs."""
    for option in (
        click.option("--config", type=click.Path(path_type=Path), help="The settings' file."),
        click.option("--port", type=int, help="The service's port.  [default: 3001]"),
        click.option("--host", help="The service's address.  [default: 127.0.0.1]"),
    ):
        command = option(command)
    return command


@jobs.command("run")
@click.argument("name")
@service_options
def run_job(name: str, host: str | None, port: int | None, config: Path | None) -> None:
    """Run a job now, on the service that is running."""
    _ask(settings.read(config, host=host, port=port), name, "run")


@jobs.command()
@click.argument("name")
@click.option("--note", help="Why; it is shown with the job and kept in the log.")
@service_options
def pause(name: str, note: str | None, host: str | None, port: int | None, config: Path | None) -> None:
    """Skip a job's ticks from here on."""
    _ask(settings.read(config, host=host, port=port), name, "pause", note)


@jobs.command()
@click.argument("name")
@click.option("--note", help="Why; it is kept in the log.")
@service_options
def resume(name: str, note: str | None, host: str | None, port: int | None, config: Path | None) -> None:
    """Run a job's ticks again."""
    _ask(settings.read(config, host=host, port=port), name, "resume", note)


def _ask(chosen: Settings, name: str, verb: str, note: str | None = None) -> None:
    """Has the service do it, and shows its answer."""
    where = f"{f'[{chosen.host}]' if ':' in chosen.host else chosen.host}:{chosen.port}"
    # A name may hold what else would end the path.
    url = f"http://{where}/api/v1/jobs/{quote(name, safe='')}/{verb}"

    async def work() -> tuple[int, bytes]:
        async with (
            aiohttp.ClientSession(timeout=_PATIENCE) as session,
            session.post(url, json={"note": note} if note else {}) as response,
        ):
            return response.status, await response.read()

    try:
        status, body = run(work())
        answer = orjson.loads(body)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise StartFailed(f"no service answers on {where}: {reason}") from error
    if not isinstance(answer, dict) or (status >= HTTPStatus.BAD_REQUEST and "detail" not in answer):
        raise StartFailed(f"what answers on {where} is not a squad: it answered {status}")
    if status >= HTTPStatus.BAD_REQUEST:
        raise StartFailed(answer["detail"])
    click.echo(dumps(answer).decode())

"""`squad jobs`: the schedule, and manual control of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from eventstore import log
from projections import storage
from projections.jobs import JOBS
from projections.runs import RUNS
from service import commands as do
from service import views
from service.cli import screen
from service.cli.output import safe, tables
from service.cli.parameters import Seconds
from service.cli.running import run
from service.cli.session import carry_out, make_command, open_session
from service.cli.target import open_squad, target_options
from service.cli.waiting import NO_LIMIT, submit_run, submit_run_and_wait
from service.history.restore import catch_up, restore
from service.http.json import dumps
from service.http.v1.jobs import SHOWN_RUNS

if TYPE_CHECKING:
    from service.cli.target import Target

_COLOURS = {"succeeded": "green", "running": "cyan", "skipped": "yellow", "missed": "yellow"}


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@target_options
@click.pass_context
def jobs(context: click.Context, *, as_json: bool, target: Target) -> None:
    """Show the schedule; run, pause or resume a job."""
    if context.invoked_subcommand is not None:
        # The options that name the squad may come before or after the subcommand.
        context.default_map = {context.invoked_subcommand: target._asdict()}
        return

    async def work() -> list[dict[str, Any]]:
        async with open_squad(target) as (connection, _, _):
            squad = await restore(connection)
            await catch_up(connection, squad)
            now = await log.clock(connection)
            rows = sorted(squad.all(JOBS), key=lambda job: job.name)
            names = [row.name for row in rows]
            last = await storage.newest(connection, RUNS, "job", names, "fencing_token", SHOWN_RUNS)
            return [views.job(row, [item.asdict() for item in last.get(row.name, ())], now) for row in rows]

    found = run(work())
    if not as_json:
        tables().print(_table(found))
    elif found:
        click.echo("\n".join(dumps(job).decode() for job in found))


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table("job", "when", "agent", "last runs, newest first", "next", title="Jobs")
    for job in found:
        runs = Text(", ").join(
            Text(item["status"], _COLOURS.get(item["status"], "red")) for item in job["last_runs"]
        )
        when, coming = screen.due(job)
        table.add_row(safe(job["name"]), when, safe(job["agent"] or "-"), runs, coming)
    return table


@jobs.command("run")
@click.argument("name")
@click.option(
    "--wait",
    "wait_seconds",
    type=Seconds(min=0, min_open=True),
    is_flag=False,
    flag_value=NO_LIMIT,
    metavar="[SECONDS]",
    help="Wait for the run to end, at most this long; fail unless it succeeds. Goes after NAME.",
)
@target_options
def run_job(name: str, wait_seconds: float | None, target: Target) -> None:
    """Run a job now, in whichever service sees it first."""

    async def work() -> None:
        waiting = wait_seconds is not None
        async with open_session(target, listen=waiting) as squad:
            if wait_seconds is None:
                await submit_run(squad, name)
            else:
                await submit_run_and_wait(squad, name, wait_seconds)

    run(work())


@jobs.command()
@click.argument("name")
@click.option("--note", help="The reason; shown with the job and kept in the log.")
@target_options
def pause(name: str, note: str | None, target: Target) -> None:
    """Skip a job's ticks from now on."""
    run(carry_out(target, make_command(do.PauseJob, name=name, note=note)))


@jobs.command()
@click.argument("name")
@click.option("--note", help="The reason; kept in the log.")
@target_options
def resume(name: str, note: str | None, target: Target) -> None:
    """Run a job's ticks again."""
    run(carry_out(target, make_command(do.ResumeJob, name=name, note=note)))

"""`squad orchestrator`: whether jobs run and agents are called, and control of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eventstore import lookup
from eventstore.events import OrchestratorStarted
from service import commands as do
from service.cli.output import printable
from service.cli.running import run
from service.cli.session import carry_out
from service.cli.target import open_squad, target_options
from service.http.json import dumps

if TYPE_CHECKING:
    from eventstore.recorded import Recorded
    from service.cli.target import Target


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@target_options
@click.pass_context
def orchestrator(context: click.Context, *, as_json: bool, target: Target) -> None:
    """Show whether the orchestrator runs, since when and by whom; start it or shut it down."""
    if context.invoked_subcommand is not None:
        # The options that name the squad may come before or after the subcommand.
        context.default_map = {context.invoked_subcommand: target._asdict()}
        return

    async def work() -> Recorded | None:
        async with open_squad(target) as (connection, _, _):
            # From the log: tables lag while no service runs.
            stream = OrchestratorStarted().stream
            found = await lookup.read_stream(connection, stream, limit=1, newest_first=True)
            return found[0] if found else None

    last = run(work())
    running = last is not None and last.type == OrchestratorStarted.type
    if as_json:
        shown = {
            "running": running,
            "since": last.recorded_at if last else None,
            "actor": last.actor if last else None,
            "position": last.position if last else None,
        }
        click.echo(dumps(shown).decode())
    elif last:
        state = "running" if running else "shut down"
        since, by = f"{last.recorded_at:%Y-%m-%d %H:%M:%S}Z", printable(last.actor)
        click.echo(f"{state} since {since}, by {by} (position {last.position})")
    else:
        click.echo("never started")


@orchestrator.command()
@target_options
def start(target: Target) -> None:
    """Run jobs and call agents from now on."""
    run(carry_out(target, do.StartOrchestrator()))


@orchestrator.command()
@target_options
def stop(target: Target) -> None:
    """Run no job and call no agent until it is started again."""
    run(carry_out(target, do.StopOrchestrator()))

"""`squad bench`: what to expect of a squad on this machine and this database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from service import selftest
from service.cli.output import tables
from service.cli.parameters import Seconds
from service.cli.running import run
from service.cli.target import command_dsn, target_options
from service.http.json import dumps

if TYPE_CHECKING:
    from service.cli.target import Target
    from service.selftest import Figures, Latency


@click.command()
@click.option(
    "--seconds",
    type=Seconds(2, 300),
    default=25.0,
    show_default=True,
    help="How long to measure.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@target_options
def bench(*, seconds: float, as_json: bool, target: Target) -> None:
    """Measure what to expect on this machine and database.

    It works in a schema of its own, which it removes afterwards.
    """
    chosen = target.settings()
    screen = Console(stderr=True)

    async def work() -> Figures:
        async with command_dsn(chosen) as found:
            with screen.status("measuring") as shown:
                return await selftest.run(found, seconds, lambda what: shown.update(f"measuring {what}"))

    figures = run(work())
    sentences = selftest.judge(figures)
    if as_json:
        click.echo(dumps({**_plain(figures), "judgement": sentences}).decode())
        return
    console = tables()
    console.print(_table(figures))
    for sentence in sentences:
        console.print(sentence, highlight=False)


def _table(figures: Figures) -> Table:
    title = f"Postgres {figures.server_version}"
    table = Table("", "per second", "p50", "p99", title=title, title_justify="left")
    for name, latency in (
        ("database round trip", figures.round_trip),
        ("durable commit", figures.commit),
        ("commit without waiting for the disk", figures.commit_unflushed),
        ("notification", figures.notification),
    ):
        table.add_row(name, "", *_cells(latency))
    for callers, rate in figures.commands.items():
        name = f"commands, {callers} caller{'s' if callers > 1 else ''}"
        table.add_row(name, f"{rate.per_second:,.0f}", *_cells(rate.latency))
    table.add_row("from answer to read table", "", *_cells(figures.visible))
    return table


def _cells(latency: Latency) -> tuple[str, str]:
    return f"{latency.p50_ms:.2f} ms", f"{latency.p99_ms:.2f} ms"


def _plain(value: Any) -> Any:
    """Convert records to JSON objects, recursively."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value

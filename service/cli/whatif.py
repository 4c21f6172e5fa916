"""`squad whatif`: the same history under other rules, on the terminal."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from service.cli.output import printable, safe, tables
from service.cli.parameters import Moment
from service.cli.running import run
from service.cli.target import open_squad, target_options
from service.explain.words import line, moment
from service.http.json import dumps
from service.values import in_words
from service.whatif import OtherRules, shown
from service.whatif.reader import judge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from service.cli.target import Target
    from service.whatif import Report

_NUMBER = re.compile("[0-9]{1,30}")
"""More digits than any rule allows, which the rule reports; Python refuses to parse thousands of them."""

_SHOWN_ROWS = 50
"""How many rows the table has; --json has more."""


class AgentLimit(click.ParamType[tuple[str, int | None]]):
    """An agent and its tokens per day, such as email_agent=50000; `none` lifts the limit."""

    name = "agent=tokens"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | None]:
        """Return the agent's name and its limit."""
        if isinstance(value, tuple):
            return value
        agent, found, tokens = value.rpartition("=")
        if not found or not (tokens == "none" or _NUMBER.fullmatch(tokens)):
            self.fail(f"{line(value)!r} is not like email_agent=50000 or email_agent=none", param, ctx)
        return agent, None if tokens == "none" else int(tokens)


class Percents(click.ParamType[list[int]]):
    """Percentages, separated by commas."""

    name = "percents"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the percentages."""
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not all(map(_NUMBER.fullmatch, parts)):
            self.fail(f"{line(value)!r} is not like 50,75,90", param, ctx)
        return [int(part) for part in parts]


@click.command()
@click.option("--daily-tokens", type=int, help="The squad's tokens per day.")
@click.option(
    "--agent-limit",
    "agent_limits",
    type=AgentLimit(),
    multiple=True,
    help="An agent's tokens per day; can be repeated. AGENT=none lifts a limit.",
)
@click.option("--conflict-window-seconds", type=float, help="How long a claim blocks without a heartbeat.")
@click.option(
    "--operation-timeout-seconds", type=float, help="When an operation without a heartbeat expires."
)
@click.option("--warning-percents", type=Percents(), help="When to warn, such as 50,75,90.")
@click.option("--since", type=Moment(), help="When the rules take effect: RFC 3339, or 15m, 2h, 1d ago.")
@click.option("--until", type=Moment(), help="Evaluate the history up to this time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@target_options
def whatif(
    *,
    agent_limits: tuple[tuple[str, int | None], ...],
    as_json: bool,
    target: Target,
    **named: Any,
) -> None:
    """Show what other rules would have refused or allowed.

    It evaluates the recorded history and changes nothing.
    """
    rules = _rules({**named, "agent_limits": dict(agent_limits) or None})

    async def work() -> Report:
        async with open_squad(target) as (connection, _, _):
            screen = Console(stderr=True)
            with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
                task = progress.add_task("judging", total=None)

                def show(position: int, upto: int) -> None:
                    progress.update(task, completed=position, total=upto)

                return await judge(lambda: nullcontext(connection), rules, at_page=show)

    report = run(work())
    if as_json:
        click.echo(dumps(shown(report)).decode())
        return
    click.echo(report.summary())
    if not report.is_different:
        for caveat in report.caveats():
            click.echo(caveat)
        return
    certain, *assumed = report.caveats()
    click.echo(certain)
    if report.rows:
        tables().print(_by_day_and_agent(report))
    click.echo("\n".join(map(printable, (*_details(report), *assumed))))


def _rules(named: dict[str, Any]) -> OtherRules:
    try:
        return OtherRules(**{name: value for name, value in named.items() if value is not None})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = str(fault["loc"][0]) if fault["loc"] else "since"
        option = "--agent-limit" if field == "agent_limits" else f"--{field.replace('_', '-')}"
        raise click.UsageError(printable(f"{option}: {in_words(fault)}")) from error


def _by_day_and_agent(report: Report) -> Table:
    table = Table(
        "day", "agent", "refused instead", "tokens", "allowed instead", "tokens", title="By day and agent"
    )
    rows = sorted(report.rows.items())
    for (day, agent), row in rows[:_SHOWN_ROWS]:
        table.add_row(
            day.isoformat(),
            safe(agent),
            f"{row.refused_instead:,}",
            f"{row.tokens_refused:,}",
            f"{row.allowed_instead:,}",
            f"{row.tokens_allowed:,}",
        )
    if len(rows) > _SHOWN_ROWS:
        table.caption = f"and {len(rows) - _SHOWN_ROWS:,} more"
    return table


def _details(report: Report) -> Iterator[str]:
    """Yield what the table does not show."""
    if report.differences:
        first = len(report.differences)
        yield "The first difference:" if first == 1 else f"The first {first} differences:"
        for difference in report.differences:
            when = moment(difference.recorded_at)
            yield f"{difference.position:>8}  {when}  {difference.sentence}"
    if report.warnings:
        yield "Warnings:"
        for warned in report.warnings[:_SHOWN_ROWS]:
            came = f"came at {moment(warned.recorded_at)}" if warned.recorded_at else "did not come"
            yield f"  {warned.percent}% of {warned.day} {came}; {_would_have(warned.instead_at)}"
    if report.runs_refused or report.runs_allowed:
        yield (
            f"Runs that would have been refused: {report.runs_refused:,}; ticks that would have run:"
            f" {report.runs_allowed:,}"
        )


def _would_have(instead_at: datetime | None) -> str:
    return f"it would have come at {moment(instead_at)}" if instead_at else "it would not have come"

"""`squad explain`: why an event happened, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from service.cli.output import printable
from service.cli.parameters import Integer
from service.cli.running import run
from service.cli.target import open_squad, target_options
from service.database import StartFailed
from service.explain import explain
from service.explain.reader import PostgresLogQueries
from service.explain.words import moment
from service.http.json import dumps
from service.views import explanation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from service.cli.target import Target
    from service.explain import Explanation
    from service.explain.record import Reason, Step


@click.command("explain")
@click.argument("position", type=Integer(min=1, max=2**63 - 1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@target_options
def explain_position(position: int, *, as_json: bool, target: Target) -> None:
    """Explain why something happened or was refused.

    POSITION is that of its event in the log.
    """

    async def work() -> Explanation | None:
        async with open_squad(target) as (connection, _, _):
            return await explain(PostgresLogQueries(connection), position)

    found = run(work())
    if found is None:
        raise StartFailed(f"the log has no position {position}")
    if as_json:
        click.echo(dumps(explanation(found)).decode())
    else:
        click.echo("\n".join(map(printable, lines(found))))


def lines(found: Explanation) -> Iterator[str]:
    """Yield the lines of an explanation for people."""
    yield f"{found.position}  {found.type}  {moment(found.recorded_at)}"
    yield found.summary
    yield from _part("Why", _reasons(found.reasons))
    yield from _part("Where it came from", _reasons(found.origin.reasons))
    causes = [_step(step) for step in found.causes]
    if found.causes_go_on_at:
        causes.append(f"and so on, from position {found.causes_go_on_at}")
    yield from _part("What led to it, the nearest first", causes)
    yield from _part("What became of it", _reasons(found.outcome))
    effects = [_step(step) for step in found.effects]
    if found.effects_go_on:
        effects.append(f"and more: every event whose caused_by is {found.position}")
    yield from _part("What it led to", effects)


def _part(title: str, rows: Iterable[str]) -> Iterator[str]:
    items = list(rows)
    if items:
        yield ""
        yield title
        yield from (f"  {item}" for item in items)


def _reasons(reasons: Iterable[Reason]) -> Iterator[str]:
    for reason in reasons:
        yield reason.sentence
        yield from (f"  - {item}" for item in reason.items)


def _step(step: Step) -> str:
    return f"{step.position:>8}  {moment(step.recorded_at)}  {step.sentence}"

"""`squad events`: the log on the terminal."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click
import orjson

from eventstore import log, lookup, sealing
from eventstore.listener import Listener
from eventstore.page_size import PageSizer
from eventstore.subscription import follow
from service.background import background
from service.cli.output import printable
from service.cli.parameters import Integer, Moment
from service.cli.running import run
from service.cli.target import open_squad, target_options
from service.history.folding import BeyondTheLog
from service.http.json import dumps
from service.http.v1.events import show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.cli.target import Target

_LINE_CHARACTERS = 220
_VALUE_CHARACTERS = 60


@click.command()
@click.option("--follow", "-f", "following", is_flag=True, help="Keep printing new events, until Ctrl-C.")
@click.option("--after", type=Integer(min=0), default=0, help="Begin after this position.")
@click.option("--type", "type_", metavar="TYPE", help="Only events of this type, such as message_sent.")
@click.option("--agent", metavar="NAME", help="Only events of this agent.")
@click.option("--since", type=Moment(), help="Only events since this time: RFC 3339, or 15m, 2h, 1d ago.")
@click.option("--until", type=Moment(), help="Only events before this time; not with --follow.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@target_options
def events(
    *,
    following: bool,
    after: int,
    type_: str | None,
    agent: str | None,
    since: datetime | None,
    until: datetime | None,
    as_json: bool,
    target: Target,
) -> None:
    """Print the log."""
    if following and until is not None:
        raise click.UsageError("--follow waits for new events, so it cannot be combined with --until")
    event_filter = lookup.Filter(type=type_, agent=agent, since=since, until=until)

    async def work() -> None:
        async with open_squad(target) as (connection, chosen, found):
            if after > (ends_at := await log.head_position(connection)):
                raise BeyondTheLog(f"it ends at position {ends_at}; was an older backup restored?")
            if not following:
                await _print_all(connection, after, event_filter, as_json=as_json)
                return
            listener = Listener(found, chosen.squad_schema)
            async with background(listener.run()):
                pages = follow(
                    lambda: nullcontext(connection), listener.events, after, event_filter=event_filter
                )
                async for page in pages:
                    _print(await sealing.reveal(connection, page), as_json=as_json)

    try:
        run(work())
    except (KeyboardInterrupt, asyncio.CancelledError):
        # It is how to end --follow; without that, the output is incomplete.
        if not following:
            raise


async def _print_all(
    connection: Connection, after: int, event_filter: lookup.Filter, *, as_json: bool
) -> None:
    page_sizer = PageSizer(log.PAGE_EVENTS)
    while page := await lookup.read_filtered(connection, after, page_sizer.events, event_filter):
        _print(await sealing.reveal(connection, page), as_json=as_json)
        after = page[-1].position
        page_sizer.adapt(page)


def _print(page: Sequence[Recorded], *, as_json: bool) -> None:
    lines = (dumps(show(recorded)).decode() if as_json else _line(recorded) for recorded in page)
    click.echo("\n".join(lines))


def _line(recorded: Recorded) -> str:
    facts = ", ".join(
        f"{name}={_brief(value)}"
        for name, value in orjson.loads(recorded.data).items()
        if value is not None
    )
    cause = f" <- {recorded.caused_by}" if recorded.caused_by else ""
    time = recorded.recorded_at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    actor = printable(recorded.actor)
    text = f"{recorded.position:>8}  {time}Z  {recorded.type:<26} {actor:<22} {facts}"
    return text[:_LINE_CHARACTERS] + cause


def _brief(value: Any) -> str:
    text = printable(value if isinstance(value, str) else orjson.dumps(value).decode())
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}…"

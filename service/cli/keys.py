"""`squad keys`: API keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from eventstore import codec, log, lookup
from projections.keys import KEYS, keys
from service import api_keys
from service import commands as do
from service.cli.output import printable, safe, tables
from service.cli.running import run
from service.cli.session import make_command, open_session
from service.cli.target import open_squad, target_options
from service.database import StartFailed
from service.decide.access import is_key_required
from service.http.json import dumps
from service.memory.draft import Draft
from service.memory.squad import Squad

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from projections.keys import KeyRow
    from service.cli.target import Target

_COLOURS = {"active": "green", "expired": "yellow", "revoked": "red"}


@click.group("keys")
def keys_() -> None:
    """Create, list and revoke API keys. As long as there is one, every request needs one."""


@keys_.command()
@click.option(
    "--scope",
    type=click.Choice(["agent", "operator", "auditor"]),
    help="What it gives access to: one agent's own data; everything; everything, read-only.",
)
@click.option("--agent", metavar="NAME", help="The agent that the key is for; with --scope agent.")
@click.option("--expires-days", type=int, metavar="N", help="Days until it expires.  [default: never]")
@click.option("--note", metavar="TEXT", help="What it is for; shown in lists and kept in the log.")
@click.option("--json", "as_json", is_flag=True, help="Print the key and its details as JSON.")
@target_options
def create(
    *,
    scope: str | None,
    agent: str | None,
    expires_days: int | None,
    note: str | None,
    as_json: bool,
    target: Target,
) -> None:
    """Create a key. It is shown only once; only its hash is stored."""
    if scope is None:
        raise click.UsageError("--scope is required: agent, operator or auditor")
    if (scope == "agent") != (agent is not None):
        raise click.UsageError("--scope agent requires --agent NAME, and no other scope allows it")
    made = api_keys.make()
    command = make_command(
        do.CreateKey,
        key_id=made.id,
        digest=made.digest,
        scope=scope,
        for_agent=agent,
        note=note,
        expires_days=expires_days,
    )

    async def work() -> dict[str, Any]:
        # Also before the first start, because a service that others can reach does not start without a key.
        async with open_session(target, create=True) as squad:
            outcome = await squad.submit(command)
            return {"key": made.text, **outcome.reply, "position": outcome.position}

    shown = run(work())
    if as_json:
        click.echo(dumps(shown).decode())
        return
    owner = f"agent {printable(agent)}" if agent else scope
    until = f", until {shown['expires_at']:%Y-%m-%d %H:%M}Z" if shown["expires_at"] else ""
    click.echo(f"key {made.id} ({owner}{until}), shown only once:", err=True)
    click.echo(made.text)


@keys_.command("list")
@click.option("--all", "with_revoked", is_flag=True, help="Include revoked keys.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@target_options
def list_(*, with_revoked: bool, as_json: bool, target: Target) -> None:
    """List the keys."""

    async def work() -> list[dict[str, Any]]:
        async with open_squad(target) as (connection, _, _):
            now = await log.clock(connection)
            return [_shown(row, now) for row in await all_keys(connection)]

    found = [key for key in run(work()) if with_revoked or key["state"] != "revoked"]
    if not as_json:
        tables().print(_table(found))
    elif found:
        click.echo("\n".join(dumps(key).decode() for key in found))


@keys_.command()
@click.argument("id_", metavar="ID")
@target_options
def revoke(id_: str, target: Target) -> None:
    """Revoke a key. ID is its id, or the key itself."""
    key_id = api_keys.id_in(id_)
    if not re.fullmatch(api_keys.ID_PATTERN, key_id):
        # The input is not repeated: it may be a mistyped key.
        raise StartFailed("that is not the id of a key; `squad keys list` shows the ids")
    command = do.RevokeKey(key_id=key_id)

    async def work() -> tuple[dict[str, Any], bool]:
        async with open_session(target) as squad:
            outcome = await squad.submit(command)
            shown = {**outcome.reply, "position": outcome.position}
            return shown, is_key_required(squad.writer.squad)

    shown, is_needed = run(work())
    click.echo(dumps(shown).decode())
    if not is_needed:
        click.echo("That was the last key: everybody on the service's machine now has access.", err=True)


async def all_keys(connection: Connection) -> list[KeyRow]:
    """Return every key ever created, oldest first, from the log: tables lag while no service runs."""
    history: list[Recorded] = []
    for kind in keys.handlers:
        after, event_filter = 0, lookup.Filter(kind.type)
        while page := await lookup.read_filtered(connection, after, log.PAGE_EVENTS, event_filter):
            history += page
            after = page[-1].position
    view = Draft(Squad())
    for recorded in sorted(history, key=lambda item: item.position):
        keys.apply(view, codec.decode(recorded), recorded)
    return sorted(view.all(KEYS), key=lambda row: row.created_at)


def _shown(row: KeyRow, now: datetime) -> dict[str, Any]:
    shown = row.asdict()
    del shown["digest"]
    if row.state == "active" and row.expires_at is not None and row.expires_at <= now:
        shown |= {"state": "expired", "ended_at": row.expires_at}
    return shown


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(title="Keys")
    for column in ("id", "scope", "agent", "note", "created", "first used", "expires", "state"):
        table.add_column(column, overflow="fold", no_wrap=column not in ("agent", "note"))
    for key in found:
        table.add_row(
            key["id"],
            key["scope"],
            safe(key["agent"] or "-"),
            safe(key["note"] or "-"),
            _day(key["created_at"]),
            _day(key["first_used_at"]),
            _day(key["expires_at"]),
            Text(key["state"], style=_COLOURS[key["state"]]),
        )
    return table


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment else "-"

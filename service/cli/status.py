"""`squad status`: one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventstore import log
from projections.agents import AGENTS
from service import views
from service.cli.common import database_options, open_squad, printable, run
from service.restore import catch_up, restore

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from service.squad import Squad

_COLOURS = {"active": "green", "idle": "yellow", "offline": "red"}


@click.command()
@database_options
def status(dsn: str | None, data: Path | None, config: Path | None) -> None:
    """Show agents, budget, operations and how far the tables are, on one screen."""

    async def work() -> tuple[Squad, datetime, list[tuple[Any, ...]]]:
        async with open_squad(config, dsn, data) as (connection, _, _):
            squad = await restore(connection)
            await catch_up(connection, squad)
            now = await log.clock(connection)
            cursor = await connection.execute("SELECT name, position, error FROM projections ORDER BY name")
            return squad, now, await cursor.fetchall()

    squad, now, projections = run(work())
    console = Console()
    console.print(_headline(squad))
    console.print(_agents(squad, now))
    console.print(_operations(squad, now))
    console.print(_lag(squad, projections))


def _headline(squad: Squad) -> Text:
    row = squad.orchestrator
    running = "running" if row and row.running else "shut down"
    text = Text(f"orchestrator {running}, log at position {squad.head.position}")
    if day := squad.day:
        budget = views.budget(squad)
        text.append(
            f"\nbudget of {day.day}: {day.used:,} used, {day.reserved:,} reserved,"
            f" {budget['remaining']:,} of {day.total:,} remain until {day.ends_at:%Y-%m-%d %H:%M}Z"
        )
    return text


def _agents(squad: Squad, now: datetime) -> Table:
    table = Table("agent", "role", "status", "last active", "used today", "limit", title="Agents")
    parts = views.budget(squad).get("agents", {})
    for row in sorted(squad.all(AGENTS), key=lambda row: row.name):
        part = parts.get(row.name, {})
        limit = part.get("limit")
        table.add_row(
            _safe(row.name),
            _safe(row.role),
            Text(row.status, style=_COLOURS[row.status]),
            f"{_ago(now, row.last_active)} ago",
            f"{part.get('used', 0):,}",
            "-" if limit is None else f"{limit:,}",
        )
    return table


def _operations(squad: Squad, now: datetime) -> Table:
    table = Table("agent", "action", "on", "since", "expires in", title="Operations under way")
    for row in views.active_operations(squad):
        claimed = ", ".join(f"{kind} {value}" for kind, value in row.resources.items())
        table.add_row(
            _safe(row.agent),
            _safe(row.action),
            _safe(claimed),
            _ago(now, row.started_at),
            _ago(row.expires_at, now),
        )
    return table


def _lag(squad: Squad, projections: list[tuple[Any, ...]]) -> Table:
    table = Table("table", "position", "behind", "stopped because", title="Read tables")
    for name, position, error in projections:
        table.add_row(name, str(position), str(squad.head.position - position), _safe(error or ""))
    return table


def _safe(text: str) -> Text:
    return Text(printable(text))


def _ago(later: datetime, earlier: datetime) -> str:
    seconds = max(0, round((later - earlier).total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"

"""Tables of the squad, as `squad status` and `squad state` show them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from projections.budgets import RESERVATIONS
from projections.emails import EMAILS
from projections.jobs import JOBS
from projections.runs import RUNS
from projections.tasks import TASKS
from service import views
from service.cli.output import safe
from service.decide.allowance import remaining

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from rich.console import RenderableType

    from service.memory.squad import Squad

_COLOURS = {"active": "green", "idle": "yellow", "offline": "red"}
_SHOWN_ROWS = 10
"""How many of the newest tasks, e-mails and the like are shown."""


def headline(squad: Squad) -> Text:
    """Return the orchestrator's state, the log's position, and the day's budget."""
    row = squad.orchestrator
    running = "running" if row and row.running else "shut down"
    text = Text(f"orchestrator {running}, log at position {squad.head.position:,}")
    if squad.head.recorded_at:
        text.append(f", recorded at {squad.head.recorded_at:%Y-%m-%d %H:%M:%S.%f}Z")
    if day := squad.day:
        text.append(
            f"\nbudget of {day.day}: {day.used:,} used, {day.reserved:,} reserved,"
            f" {remaining(day):,} of {day.total:,} remain until {day.ends_at:%Y-%m-%d %H:%M}Z"
        )
    return text


def agents(squad: Squad, now: datetime) -> Table:
    """Return a table of all agents and what they have used."""
    table = Table("agent", "role", "status", "last active", "used today", "limit", title="Agents")
    day = squad.day
    limits = squad.policy.agent_limits if day else {}
    for row in views.agents(squad):
        limit = limits.get(row.name)
        table.add_row(
            safe(row.name),
            safe(row.role),
            Text(row.status, style=_COLOURS[row.status]),
            f"{ago(now, row.last_active)} ago",
            f"{squad.agent_budget(day, row.name).used if day else 0:,}",
            "-" if limit is None else f"{limit:,}",
        )
    return table


def operations(squad: Squad, now: datetime) -> Table:
    """Return a table of the active operations."""
    table = Table("agent", "action", "on", "since", "expires in", title="Active operations")
    for row in views.active_operations(squad):
        claimed = ", ".join(f"{kind} {value}" for kind, value in row.resources.items())
        table.add_row(
            safe(row.agent),
            safe(row.action),
            safe(claimed),
            ago(now, row.started_at),
            ago(row.expires_at, now),
        )
    return table


def jobs(squad: Squad, now: datetime) -> Table:
    """Return a table of the schedule: all jobs, and when each runs next or why it does not."""
    table = Table("job", "when", "agent", "next", title="Jobs")
    for job in sorted(squad.all(JOBS), key=lambda row: row.name):
        when, coming = due(views.planned(job, now))
        table.add_row(safe(job.name), when, safe(job.agent or "-"), coming)
    return table


def due(job: Mapping[str, Any]) -> tuple[Text, Text]:
    """Return a job's schedule, and when it runs next or why it does not."""
    when = job["cron"] or f"every {job['every_seconds']:g} s"
    coming = f"{job['next_ticks'][0]:%Y-%m-%d %H:%M:%S}Z" if job["next_ticks"] else "-"
    if job["paused"]:
        # The note may quote an agent's answer.
        coming = f"paused: {job['pause_note'] or 'no note'}"
    return safe(when), safe(coming)


def open_work(squad: Squad, now: datetime) -> Iterable[RenderableType]:
    """Yield tables of whatever else is open, each with the newest rows."""
    reservations = sorted(squad.all(RESERVATIONS), key=lambda row: row.position)
    if reservations:
        yield _newest(
            "Reserved tokens",
            ("agent", "tokens", "since", "expires in"),
            [
                (row.agent, f"{row.tokens:,}", ago(now, row.created_at), ago(row.expires_at, now))
                for row in reservations
            ],
        )
    if any(squad.all(JOBS)):
        yield jobs(squad, now)
    if runs := sorted(squad.all(RUNS), key=lambda row: row.fencing_token):
        yield _newest(
            "Active runs",
            ("job", "tick", "attempt", "by", "since"),
            [
                (
                    row.job,
                    f"{row.tick:%Y-%m-%d %H:%M:%S}Z",
                    f"{row.attempts} of {row.attempts_allowed}",
                    row.runner or "waiting for the next attempt",
                    ago(now, row.started_at or row.tick),
                )
                for row in runs
            ],
        )
    if tasks := sorted(squad.all(TASKS), key=lambda row: row.created_position):
        yield _newest(
            "Open tasks",
            ("task", "status", "priority", "agent", "since"),
            [
                (row.title, row.status, row.priority, row.assigned_agent or "-", ago(now, row.created_at))
                for row in tasks
            ],
        )
    if emails := sorted(squad.all(EMAILS), key=lambda row: row.created_position):
        yield _newest(
            "Open e-mails",
            ("from", "subject", "category", "status", "handled by", "since"),
            [
                (
                    row.from_email,
                    row.subject or "-",
                    row.category,
                    row.status,
                    row.handled_by or "-",
                    ago(now, row.created_at),
                )
                for row in emails
            ],
        )


def _newest(title: str, columns: Sequence[str], rows: list[tuple[str, ...]]) -> Table:
    more = f", the newest {_SHOWN_ROWS} of {len(rows):,}" if len(rows) > _SHOWN_ROWS else ""
    table = Table(*columns, title=f"{title}{more}")
    for row in islice(reversed(rows), _SHOWN_ROWS):
        table.add_row(*map(safe, row))
    return table


def ago(later: datetime, earlier: datetime) -> str:
    """Return the time between two moments, for people."""
    seconds = max(0, round((later - earlier).total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"

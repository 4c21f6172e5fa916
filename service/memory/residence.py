"""What stays in memory: which tables' rows, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

from eventstore.events import EmailStatus, TaskStatus
from projections import PROJECTIONS
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS, BUDGETS, POLICY, RESERVATIONS
from projections.emails import EMAILS
from projections.jobs import JOBS
from projections.keys import ACCESS, KEYS
from projections.operations import OPERATIONS
from projections.orchestrator import ORCHESTRATOR
from projections.projection import Table
from projections.runs import RUNS
from projections.tasks import TASKS

OPEN_TASKS = tuple(status for status in get_args(TaskStatus) if status != "completed")
OPEN_EMAILS = tuple(status for status in get_args(EmailStatus) if status not in ("sent", "archived"))
"""Statuses in which something is left to do. (Queries list these, so that an index finds the rows.)"""


class Residence(NamedTuple):
    """Which rows of a table stay in memory, and the stream whose version is kept with each."""

    table: Table[Any, Any]
    is_active: Callable[[Any], bool]
    stream: Callable[[Any], str | None]


RESIDENT: dict[str, Residence] = {
    residence.table.name: residence
    for residence in (
        Residence(AGENTS, lambda row: True, lambda row: f"agent-{row.name}"),
        Residence(OPERATIONS, lambda row: row.state == "active", lambda row: f"operation-{row.id}"),
        Residence(RESERVATIONS, lambda row: row.state == "active", lambda row: f"reservation-{row.id}"),
        Residence(
            BUDGET_DAYS,
            # A closed day stays as long as one of its reservations may still be settled.
            lambda row: row.closed_at is None or row.reserved != 0,
            lambda row: f"budget-{row.day.isoformat()}",
        ),
        Residence(BUDGETS, lambda row: True, lambda row: None),
        Residence(POLICY, lambda row: True, lambda row: "policy"),
        Residence(ORCHESTRATOR, lambda row: True, lambda row: "orchestrator"),
        Residence(JOBS, lambda row: not row.removed, lambda row: f"job-{row.name}"),
        Residence(RUNS, lambda row: row.status == "running", lambda row: f"run-{row.id}"),
        Residence(KEYS, lambda row: row.state == "active", lambda row: f"key-{row.id}"),
        Residence(ACCESS, lambda row: True, lambda row: None),
        Residence(TASKS, lambda row: row.status in OPEN_TASKS, lambda row: f"task-{row.id}"),
        Residence(EMAILS, lambda row: row.status in OPEN_EMAILS, lambda row: f"email-{row.id}"),
    )
}
"""The tables kept in memory. Messages and conflicts are not: they are finished as soon as they happen."""

RESIDENT_PROJECTIONS = tuple(
    projection for projection in PROJECTIONS if any(table.name in RESIDENT for table in projection.tables)
)
"""The projections with such tables."""

PARTIAL = frozenset({TASKS.name, EMAILS.name, KEYS.name})
"""Tables whose rows may exist but not be in memory: they are read from the log when a command needs them.

A row that was finished, left memory and was reopened by another process is open but not in memory:
`Squad.absent` lists its stream, so that whoever needs everything open can load it.
"""

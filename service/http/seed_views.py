"""The live state in the seed's terms, as its facade shows it. Pure: rows in, plain values out."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from projections.jobs import JOBS
from service.decide.allowance import remaining
from service.lazy_rows import by_name, listed
from service.schedule import upcoming_ticks
from service.views import active_operations

if TYPE_CHECKING:
    from datetime import datetime

    from projections.jobs import JobRow
    from projections.operations import OperationRow
    from service.lazy_rows import LazyRows
    from service.memory.squad import Squad
    from service.memory.state import State


def jobs(state: Squad, now: datetime) -> list[Any] | LazyRows:
    """Return the schedule in the seed's terms."""

    def show(row: JobRow) -> dict[str, Any]:
        tick = state.due_jobs.tick(row.name)
        if tick is None or tick <= now:
            tick = next(iter(upcoming_ticks(row, now, 1)), None)
        return {
            "name": row.name,
            "schedule": row.cron or f"every {row.every_seconds:g} s",
            "paused": row.paused,
            "nextRun": tick,
        }

    return listed(sorted((row for row in state.all(JOBS) if row.enabled), key=attrgetter("name")), show)


def _budget(state: State) -> dict[str, Any]:
    """Return the budget in the seed's terms. Others cannot use reserved tokens, so these do not remain."""
    day = state.day
    if day is None:
        return {"total": 0, "used": 0, "remaining": 0, "agentUsage": {}}
    return {
        "total": day.total,
        "used": day.used,
        "remaining": remaining(day),
        "agentUsage": by_name(
            [part for part in state.agent_budgets(day) if part.used],
            attrgetter("used"),
            attrgetter("agent"),
        ),
    }


def _operations(state: Squad) -> list[Any] | LazyRows:
    """Return the active operations in the seed's terms, each resource kind a field of its own."""
    return listed(list(active_operations(state)), _operation)


def _operation(row: OperationRow) -> dict[str, Any]:
    return {
        **row.resources,
        "id": row.id,
        "agents": [row.agent],
        "action": row.action,
        "timestamp": row.started_at,
    }


def orchestrator(state: Squad, now: datetime) -> dict[str, Any]:
    """Return the orchestrator in the seed's terms."""
    row = state.orchestrator
    return {
        "isRunning": bool(row and row.running),
        "startedAt": row.started_at if row else None,
        "tokenBudget": _budget(state),
        "activeOperations": _operations(state),
        "scheduledJobs": jobs(state, now),
    }


def status(state: Squad, now: datetime) -> dict[str, Any]:
    """Return what the seed calls the orchestrator's status."""
    return {
        "tokenBudget": _budget(state),
        "activeOperations": _operations(state),
        "timestamp": now,
    }

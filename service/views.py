"""The live state as the API shows it. Pure: rows in, plain values out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projections.agents import AGENTS
from projections.budgets import POLICY, RESERVATIONS, THE_POLICY
from projections.emails import EMAILS
from projections.jobs import JOBS
from projections.operations import OPERATIONS
from projections.runs import RUNS
from projections.tasks import TASKS
from service.decide.budget import remaining
from service.schedule import coming_ticks

NEXT_TICKS = 5
"""How many ticks ahead a job is shown."""

INNER_OF_JOBS = frozenset({"removed", "removed_by", "ticked_until", "buffered_tick"})
"""Columns of a job's row that are nobody's business."""

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from projections.budgets import PolicyRow
    from projections.jobs import JobRow
    from projections.operations import OperationRow
    from projections.orchestrator import OrchestratorRow
    from service.explain import Explanation
    from service.squad import Squad, State


def budget(state: State) -> dict[str, Any]:
    """The day's budget, as a whole and by agent: all that used or reserved any, or have a limit."""
    day = state.day
    if day is None:
        return {}
    limits = state.policy.agent_limits
    parts = {part.agent: part for part in state.agent_budgets(day)}
    agents = {}
    for name in sorted(parts.keys() | limits.keys()):
        part, limit = state.agent_budget(day, name), limits.get(name)
        agents[name] = {
            "used": part.used,
            "reserved": part.reserved,
            "limit": limit,
            "remaining": None if limit is None else limit - part.used - part.reserved,
        }
    return {
        "period": day.day,
        "total": day.total,
        "used": day.used,
        "reserved": day.reserved,
        "remaining": remaining(day),
        "resets_at": day.ends_at,
        "agents": agents,
    }


def agents(state: State) -> list[dict[str, Any]]:
    """Every agent, by name."""
    return [row.asdict() for row in sorted(state.all(AGENTS), key=lambda row: row.name)]


def active_operations(squad: Squad) -> Iterable[OperationRow]:
    """Every operation under way, the oldest first: as the squad keeps them. There can be very many."""
    return squad.all(OPERATIONS)


def job(row: JobRow, last_runs: list[dict[str, Any]], now: datetime) -> dict[str, Any]:
    """A job with its last runs and its next ticks."""
    return {**planned(row, now), "last_runs": last_runs}


def planned(row: JobRow, now: datetime) -> dict[str, Any]:
    """A job with its next ticks."""
    shown = {name: value for name, value in row.asdict().items() if name not in INNER_OF_JOBS}
    ticks = coming_ticks(row, now, NEXT_TICKS) if row.enabled else []
    return {**shown, "next_ticks": ticks}


def whole(state: Squad, moment: datetime | None) -> dict[str, Any]:
    """All that is there at a moment, as the API shows it; None before the first event."""
    reservations = sorted(state.all(RESERVATIONS), key=lambda row: row.position)
    runs = sorted(state.all(RUNS), key=lambda row: row.fencing_token)
    tasks = sorted(state.all(TASKS), key=lambda row: row.created_position)
    emails = sorted(state.all(EMAILS), key=lambda row: row.created_position)
    jobs = sorted(state.all(JOBS), key=lambda row: row.name)
    return {
        "position": state.head.position,
        "recorded_at": state.head.recorded_at,
        "moment": moment,
        "orchestrator": _the_only(state.orchestrator),
        "policy": _the_only(state.rows(POLICY).get(THE_POLICY)),
        "budget": budget(state) or None,
        "agents": agents(state),
        "operations": [row.asdict() for row in active_operations(state)],
        "reservations": [row.asdict() for row in reservations],
        "jobs": [planned(row, moment) for row in jobs] if moment else [],
        "runs": [row.asdict() for row in runs],
        "tasks": [row.asdict() for row in tasks],
        "emails": [row.asdict() for row in emails],
    }


def _the_only(row: PolicyRow | OrchestratorRow | None) -> dict[str, Any] | None:
    """The one row of a table; its name says nothing."""
    return {name: value for name, value in row.asdict().items() if name != "name"} if row else None


def explanation(found: Explanation) -> dict[str, Any]:
    """Why something happened, for programs; the sentences are those that a person reads."""
    origin = found.origin
    return {
        **found._asdict(),
        "reasons": [reason._asdict() for reason in found.reasons],
        "causes": [step._asdict() for step in found.causes],
        "origin": {**origin._asdict(), "reasons": [reason._asdict() for reason in origin.reasons]},
        "effects": [step._asdict() for step in found.effects],
    }


def seed_jobs(state: State, now: datetime) -> list[dict[str, Any]]:
    """The schedule in the seed's words."""
    return [
        {
            "name": row.name,
            "schedule": row.cron or f"every {row.every_seconds:g} s",
            "paused": row.paused,
            "nextRun": next(iter(coming_ticks(row, now, 1)), None),
        }
        for row in sorted(state.all(JOBS), key=lambda row: row.name)
        if row.enabled
    ]


def seed_budget(state: State) -> dict[str, Any]:
    """The budget in the seed's words. What is reserved cannot be used by others, so it does not remain."""
    day = state.day
    if day is None:
        return {"total": 0, "used": 0, "remaining": 0, "agentUsage": {}}
    return {
        "total": day.total,
        "used": day.used,
        "remaining": remaining(day),
        "agentUsage": {part.agent: part.used for part in state.agent_budgets(day) if part.used},
    }


def seed_operations(state: Squad) -> list[dict[str, Any]]:
    """The operations under way in the seed's words, each resource kind a field of its own."""
    return [
        {
            **row.resources,
            "id": row.id,
            "agents": [row.agent],
            "action": row.action,
            "timestamp": row.started_at,
        }
        for row in active_operations(state)
    ]


def seed_orchestrator(state: Squad, now: datetime) -> dict[str, Any]:
    """The orchestrator in the seed's words."""
    row = state.orchestrator
    return {
        "isRunning": bool(row and row.running),
        "startedAt": row.started_at if row else None,
        "tokenBudget": seed_budget(state),
        "activeOperations": seed_operations(state),
        "scheduledJobs": seed_jobs(state, now),
    }


def seed_status(state: Squad, now: datetime) -> dict[str, Any]:
    """What the seed calls the orchestrator's status."""
    return {
        "tokenBudget": seed_budget(state),
        "activeOperations": seed_operations(state),
        "timestamp": now,
    }

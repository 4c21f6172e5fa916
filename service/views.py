"""The live state as the API shows it. Pure: rows in, plain values out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projections.agents import AGENTS
from projections.operations import OPERATIONS
from service.decide.budget import remaining

if TYPE_CHECKING:
    from datetime import datetime

    from projections.operations import OperationRow
    from service.squad import State


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
    return [row._asdict() for row in sorted(state.all(AGENTS), key=lambda row: row.name)]


def active_operations(state: State) -> list[OperationRow]:
    """Every operation under way, the oldest first."""
    return sorted(state.all(OPERATIONS), key=lambda row: row.fencing_token)


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


def seed_operations(state: State) -> list[dict[str, Any]]:
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


def seed_orchestrator(state: State) -> dict[str, Any]:
    """The orchestrator in the seed's words."""
    row = state.orchestrator
    return {
        "isRunning": bool(row and row.running),
        "startedAt": row.started_at if row else None,
        "tokenBudget": seed_budget(state),
        "activeOperations": seed_operations(state),
        "scheduledJobs": [],
    }


def seed_status(state: State, now: datetime) -> dict[str, Any]:
    """What the seed calls the orchestrator's status."""
    return {
        "tokenBudget": seed_budget(state),
        "activeOperations": seed_operations(state),
        "timestamp": now,
    }

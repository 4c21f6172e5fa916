"""The live state as shown by the API. Pure: rows in, plain values out."""

from __future__ import annotations

from itertools import islice
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

from projections.agents import AGENTS
from projections.budgets import BUDGETS, POLICY, RESERVATIONS, THE_POLICY
from projections.emails import EMAILS
from projections.jobs import JOBS
from projections.operations import OPERATIONS
from projections.runs import RUNS
from projections.tasks import TASKS
from service.decide.allowance import remaining
from service.lazy_rows import by_name, listed
from service.schedule import upcoming_ticks

NEXT_TICKS = 5
"""How many of a job's next ticks are shown."""

INNER_OF_JOBS = frozenset({"removed", "removed_by", "ticked_until", "buffered_tick"})
"""Internal columns of a job's row."""

_NAME, _AGENT = attrgetter("name"), attrgetter("agent")
_ALL_FIELDS = methodcaller("asdict")

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from projections.agents import AgentRow
    from projections.budgets import BudgetRow, PolicyRow
    from projections.jobs import JobRow
    from projections.operations import OperationRow
    from projections.orchestrator import OrchestratorRow
    from service.explain import Explanation
    from service.memory.squad import Squad
    from service.memory.state import State


def budget(state: State) -> dict[str, Any]:
    """Return the day's budget, in total and for each agent that used or reserved tokens or has a limit."""
    day = state.day
    if day is None:
        return {}
    limits = state.policy.agent_limits

    def show(part: BudgetRow) -> dict[str, Any]:
        limit = limits.get(part.agent)
        return {
            "used": part.used,
            "reserved": part.reserved,
            "limit": limit,
            "remaining": None if limit is None else limit - part.used - part.reserved,
        }

    parts = state.agent_budgets(day)
    known = state.rows(BUDGETS)
    if unused := [name for name in limits if known.get((day.day, name)) is None]:
        parts += [state.agent_budget(day, name) for name in unused]
        parts.sort(key=_AGENT)
    return {
        "period": day.day,
        "total": day.total,
        "used": day.used,
        "reserved": day.reserved,
        "remaining": remaining(day),
        "resets_at": day.ends_at,
        "agents": by_name(parts, show, _AGENT),
    }


def agents(state: State) -> list[AgentRow]:
    """Return all agents, sorted by name."""
    return sorted(state.all(AGENTS), key=_NAME)


def active_operations(squad: Squad) -> Iterable[OperationRow]:
    """Return all active operations, oldest first, as the squad keeps them. There can be very many."""
    return squad.all(OPERATIONS)


def operations_of(squad: Squad, agent: str) -> Iterable[OperationRow]:
    """Return an agent's active operations, oldest first.

    They are searched for among all, but only until as many were found as the agent has.
    """
    row = squad.rows(AGENTS).get(agent)
    found = (operation for operation in squad.all(OPERATIONS) if operation.agent == agent)
    return islice(found, row.operations if row else 0)


def job(row: JobRow, last_runs: list[dict[str, Any]], now: datetime) -> dict[str, Any]:
    """Return a job with its last runs and its next ticks."""
    return {**planned(row, now), "last_runs": last_runs}


def planned(row: JobRow, now: datetime) -> dict[str, Any]:
    """Return a job with its next ticks."""
    shown = {name: value for name, value in row.asdict().items() if name not in INNER_OF_JOBS}
    ticks = upcoming_ticks(row, now, NEXT_TICKS) if row.enabled else []
    return {**shown, "next_ticks": ticks}


def full_state(state: Squad, moment: datetime | None) -> dict[str, Any]:
    """Return the whole state at `moment`, as shown by the API; `moment` is None before the first event."""
    reservations = sorted(state.all(RESERVATIONS), key=lambda row: row.position)
    runs = sorted(state.all(RUNS), key=lambda row: row.fencing_token)
    tasks = sorted(state.all(TASKS), key=lambda row: row.created_position)
    emails = sorted(state.all(EMAILS), key=lambda row: row.created_position)
    jobs = sorted(state.all(JOBS), key=lambda row: row.name)
    return {
        "position": state.head.position,
        "recorded_at": state.head.recorded_at,
        "moment": moment,
        "orchestrator": _without_name(state.orchestrator),
        "policy": _without_name(state.rows(POLICY).get(THE_POLICY)),
        "budget": budget(state) or None,
        "agents": listed(agents(state), _ALL_FIELDS),
        "operations": listed(list(active_operations(state)), _ALL_FIELDS),
        "reservations": listed(reservations, _ALL_FIELDS),
        "jobs": listed(jobs, lambda row: planned(row, moment)) if moment else [],
        "runs": listed(runs, _ALL_FIELDS),
        "tasks": listed(tasks, _ALL_FIELDS),
        "emails": listed(emails, _ALL_FIELDS),
    }


def _without_name(row: PolicyRow | OrchestratorRow | None) -> dict[str, Any] | None:
    """Return the only row of a table without its name, which says nothing."""
    return {name: value for name, value in row.asdict().items() if name != "name"} if row else None


def explanation(found: Explanation) -> dict[str, Any]:
    """Return an explanation as plain values, with the sentences that people read."""
    origin = found.origin
    return {
        **found._asdict(),
        "reasons": [reason._asdict() for reason in found.reasons],
        "causes": [step._asdict() for step in found.causes],
        "origin": {**origin._asdict(), "reasons": [reason._asdict() for reason in origin.reasons]},
        "outcome": [reason._asdict() for reason in found.outcome],
        "effects": [step._asdict() for step in found.effects],
    }

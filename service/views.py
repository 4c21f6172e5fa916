"""The live state as the API shows it. Pure: rows in, plain values out."""

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
from service.decide.budget import remaining
from service.many import by_name, listed
from service.schedule import coming_ticks

NEXT_TICKS = 5
"""How many ticks ahead a job is shown."""

INNER_OF_JOBS = frozenset({"removed", "removed_by", "ticked_until", "buffered_tick"})
"""Columns of a job's row that are nobody's business."""

_ITS_NAME, _ITS_AGENT = attrgetter("name"), attrgetter("agent")
_AS_IT_IS = methodcaller("asdict")

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
    """The day's budget, as a whole and by agent: all that used or reserved any, or have a limit."""
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
        parts.sort(key=_ITS_AGENT)
    return {
        "period": day.day,
        "total": day.total,
        "used": day.used,
        "reserved": day.reserved,
        "remaining": remaining(day),
        "resets_at": day.ends_at,
        "agents": by_name(parts, show, _ITS_AGENT),
    }


def agents(state: State) -> list[AgentRow]:
    """Every agent, by name."""
    return sorted(state.all(AGENTS), key=_ITS_NAME)


def active_operations(squad: Squad) -> Iterable[OperationRow]:
    """Every operation under way, the oldest first: as the squad keeps them. There can be very many."""
    return squad.all(OPERATIONS)


def operations_of(squad: Squad, agent: str) -> Iterable[OperationRow]:
    """An agent's operations under way, the oldest first.

    They are looked for among all, but no longer than until as many are found as the agent can have.
    """
    row = squad.rows(AGENTS).get(agent)
    found = (operation for operation in squad.all(OPERATIONS) if operation.agent == agent)
    return islice(found, row.operations if row else 0)


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
        "agents": listed(agents(state), _AS_IT_IS),
        "operations": listed(list(active_operations(state)), _AS_IT_IS),
        "reservations": listed(reservations, _AS_IT_IS),
        "jobs": listed(jobs, lambda row: planned(row, moment)) if moment else [],
        "runs": listed(runs, _AS_IT_IS),
        "tasks": listed(tasks, _AS_IT_IS),
        "emails": listed(emails, _AS_IT_IS),
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
        "outcome": [reason._asdict() for reason in found.outcome],
        "effects": [step._asdict() for step in found.effects],
    }

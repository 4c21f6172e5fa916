"""What the budget allows: how much may still be reserved, when to try again, and when to warn."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from eventstore.events import BudgetThresholdCrossed, DenialReason, WarningLevel
from eventstore.recorded import NewEvent
from projections.budgets import RESERVATIONS

if TYPE_CHECKING:
    from datetime import datetime

    from projections.budgets import BudgetDayRow
    from service.memory.state import State

MIN_RETRY_SECONDS = 30
"""How soon a refused reservation should be tried again at the earliest. In a busy squad some reservation
expires at any moment, and each refusal is an event."""


class Allowance(NamedTuple):
    """Why tokens may not be reserved, if so, and how many the agent could still reserve."""

    denied: DenialReason | None
    remaining: int


def remaining(day: BudgetDayRow) -> int:
    """Return the tokens that are neither used nor reserved; negative if use exceeded the budget."""
    return day.total - day.used - day.reserved


def allowance(state: State, day: BudgetDayRow, agent: str, tokens: int) -> Allowance:
    """Check whether an agent may reserve tokens, without reserving them."""
    of_squad = remaining(day)
    limit = state.policy.agent_limits.get(agent)
    part = state.agent_budget(day, agent)
    of_agent = of_squad if limit is None else limit - part.used - part.reserved
    if tokens > of_squad:
        return Allowance("budget_exhausted", min(of_squad, of_agent))
    if tokens > of_agent:
        return Allowance("agent_limit_reached", min(of_squad, of_agent))
    return Allowance(None, min(of_squad, of_agent))


def of_whole_day(state: State, agent: str) -> int:
    """Return how many tokens an agent could reserve on a day of which nothing is used."""
    policy = state.policy
    return min(policy.daily_tokens, policy.agent_limits.get(agent, policy.daily_tokens))


def retry_after_seconds(state: State, day: BudgetDayRow, agent: str, tokens: int, now: datetime) -> int:
    """Return when to try again to reserve tokens that were refused.

    If there are enough that are only reserved, that is when the next reservation expires, one of the
    agent's own if its limit refuses; otherwise when the day ends, even if no day has so many: every such
    refusal names a moment, and the policy may be another one by then.
    """
    part = state.agent_budget(day, agent)
    limit = state.policy.agent_limits.get(agent, day.total)
    until_day_ends = ceil((day.ends_at - now).total_seconds())
    if tokens > day.total - day.used or tokens > limit - part.used:
        return max(1, until_day_ends)
    free_at = now
    if tokens > remaining(day):
        free_at = state.first_to_expire(RESERVATIONS.name, now)
    if tokens > limit - part.used - part.reserved:
        own = (row.expires_at for row in state.reservations_of(agent) if row.day == day.day)
        free_at = max(free_at, min(own, default=day.ends_at))
    until_expiry = ceil((free_at - now).total_seconds())
    return max(1, min(until_day_ends, max(until_expiry, MIN_RETRY_SECONDS)))


def beyond_any_day(state: State, agent: str, tokens: int) -> str:
    """Return the end of a refusal's detail: a clause if no day has so many tokens, otherwise nothing."""
    most = of_whole_day(state, agent)
    return (
        f"; a whole day allows no more than {most}, so this needs another policy" if tokens > most else ""
    )


def open_day(state: State) -> BudgetDayRow:
    """Return the current budget day; it is up to date, as every batch begins with the time-driven events.

    Raises:
        LookupError: the squad has no policy yet, so no day has begun.
    """
    day = state.day
    if day is None:
        raise LookupError("no budget day has begun")
    return day


def _level(percent: int) -> WarningLevel:
    if percent >= 90:
        return "critical"
    return "warning" if percent >= 75 else "info"


def crossings(
    state: State, day: BudgetDayRow, used: int, *, caused_by: int, total: int | None = None
) -> list[NewEvent]:
    """Return the warnings that are due once the day's use is `used`."""
    total = day.total if total is None else total
    return [
        NewEvent(
            BudgetThresholdCrossed(
                day=day.day, percent=percent, level=_level(percent), used=used, total=total
            ),
            caused_by=caused_by,
        )
        for percent in sorted(state.policy.warning_percents)
        if percent > day.warned_percent and used > 0 and used * 100 >= percent * total
    ]

"""Decisions about the rules: the policy, and the budget days that result from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore.events import BudgetDayReset, PolicySet
from eventstore.recorded import NewEvent
from service.decide.allowance import crossings, open_day
from service.decide.builder import DecisionBuilder
from service.decide.day import Day, budget_day, budget_day_without_zone
from service.decide.decision import Accepted, Decision, DecisionContext

if TYPE_CHECKING:
    from datetime import datetime

    from projections.budgets import BudgetDayRow, PolicyRow
    from service.commands import SetBudget, SetPolicy
    from service.memory.draft import Draft
    from service.memory.state import State

DEFAULT_WARNING_PERCENTS = [50, 75, 90]

_RULES: dict[str, Any] = {
    "daily_tokens": 100_000,
    "agent_limits": {},
    "warning_percents": DEFAULT_WARNING_PERCENTS,
    "reset_hour": 0,
    "timezone": "UTC",
    "conflict_window_seconds": 30.0,
    "operation_timeout_seconds": 60.0,
    "idle_after_minutes": 10.0,
    "offline_after_minutes": 60.0,
}
"""The default policy, as in the seed specification."""


def day_reset_if_due(state: State, now: datetime) -> list[NewEvent]:
    """Return the start of a new budget day, if the old one has ended."""
    day = state.day
    if day and day.starts_at <= now < day.ends_at:
        return []
    policy = state.policy
    return [
        NewEvent(_day_reset(state, policy.daily_tokens, _day_rule(policy), now), caused_by=policy.position)
    ]


class _DayRule(NamedTuple):
    """The rule that says when a budget day begins."""

    reset_hour: int
    timezone: str


def _day_rule(policy: PolicyRow) -> _DayRule:
    return _DayRule(policy.reset_hour, policy.timezone)


def set_rules(draft: Draft, command: SetBudget | SetPolicy, at: DecisionContext) -> Decision:
    """Change the rules that a command names. The first time, the rest is set to the defaults."""
    fields = {
        name: value for name in command.model_fields_set if (value := getattr(command, name)) is not None
    }
    builder = DecisionBuilder(draft, at)
    if not draft.has_policy:
        rules = {**_RULES, **fields}
        day_rule = _DayRule(rules["reset_hour"], rules["timezone"])
        first_day = _day_reset(draft, rules["daily_tokens"], day_rule, at.now)
        builder.add(first_day, caused_by=builder.add(PolicySet(**rules, day=None)))
        return builder.accept(rules)
    policy, day = draft.policy, open_day(draft)
    current = {name: getattr(policy, name) for name in _RULES}
    rules = {**current, **fields}
    if rules == current:
        return Accepted([], {**rules, "position": policy.position})
    total, day_rule = rules["daily_tokens"], _DayRule(rules["reset_hour"], rules["timezone"])
    reset = _day_reset(draft, total, day_rule, at.now) if day_rule != _day_rule(policy) else None
    # A day that the new rules end was spent under the old ones, so it keeps its total.
    is_same_day = reset is None or reset.day == day.day
    policy_set = PolicySet(**rules, day=day.day if is_same_day else None)
    cause = builder.add(policy_set, caused_by=policy.position)
    if reset:
        builder.add(reset, caused_by=cause)
    if is_same_day:
        builder.events += crossings(draft, day, day.used, caused_by=cause, total=total)
    return builder.accept(rules)


def _day_reset(state: State, total: int, day_rule: _DayRule, now: datetime) -> BudgetDayReset:
    previous = state.day
    try:
        day = _day_by(day_rule, previous, now)
    except ValueError:
        # Without a day, nothing could be decided. A process that knows the time zone corrects it.
        last = Day(previous.day, previous.starts_at, previous.ends_at) if previous else None
        day = budget_day_without_zone(last, now)
    agents = {part.agent: part.used for part in state.agent_budgets(previous)} if previous else {}
    return BudgetDayReset(
        day=day.name,
        starts_at=day.starts_at,
        ends_at=day.ends_at,
        total=total,
        previous_day=previous.day if previous else None,
        previous_used=previous.used if previous else 0,
        previous_total=previous.total if previous else 0,
        previous_agents=agents,
    )


def _day_by(day_rule: _DayRule, previous: BudgetDayRow | None, now: datetime) -> Day:
    """Return the day to open.

    Raises:
        ValueError: see `budget_day`.
    """
    day = budget_day(day_rule.reset_hour, day_rule.timezone, now)
    if previous is None or day.name >= previous.day:
        return day
    # Moving to a zone further west after local midnight would reopen yesterday, whose budget is spent.
    # Instead, today lasts until tomorrow begins by the new rules.
    ends_at = day.ends_at
    while (tomorrow := budget_day(day_rule.reset_hour, day_rule.timezone, ends_at)).name <= previous.day:
        ends_at = tomorrow.ends_at
    return Day(previous.day, day.starts_at, ends_at)

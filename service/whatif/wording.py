"""Differences in words: what was, and what would have been."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.explain import words

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.events import (
        ConflictDetected,
        OperationStarted,
        RunSkipped,
        RunStarted,
        TokensDenied,
        TokensReserved,
    )
    from projections.budgets import BudgetDayRow
    from projections.operations import OperationRow
    from service.decide.budget import Allowance
    from service.decide.operations import Conflict
    from service.memory.state import State


def reservation_refused(state: State, day: BudgetDayRow, event: TokensReserved, judged: Allowance) -> str:
    """Tokens that were set aside and would not have been."""
    left = _left(state, day, event.agent, of_agent=judged.denied == "agent_limit_reached")
    asked = words.tokens(event.tokens)
    were, they = words.were(event.tokens), words.they(event.tokens)
    return f"{asked} {were} set aside for {event.agent}. {they} would have been refused: {left}."


def reservation_allowed(state: State, day: BudgetDayRow, event: TokensDenied) -> str:
    """Tokens that were refused and would have been set aside."""
    left = _left(state, day, event.agent, of_agent=event.reason == "agent_limit_reached")
    asked, they = words.tokens(event.tokens), words.they(event.tokens)
    return f"{event.agent} was refused {asked}. {they} would have been set aside: {left}."


def claim_refused(event: OperationStarted, conflict: Conflict) -> str:
    """A claim that was made and would not have been."""
    return (
        f"{event.agent} claimed {words.resources(event.resources)} for {words.quote(event.action)}."
        f" That would have been refused: {_in_the_way(conflict)}."
    )


def claim_allowed(event: ConflictDetected) -> str:
    """A claim that was refused and would have been made."""
    return f"{_turned_away(event)} Nobody would have been in the way."


def heartbeat_refused(row: OperationRow, conflict: Conflict) -> str:
    """A claim that went on and would not have."""
    return (
        f"{row.agent} renewed its claim of {words.resources(row.resources)}. That would have been refused:"
        f" {_in_the_way(conflict)}."
    )


def heartbeat_allowed(event: ConflictDetected) -> str:
    """A claim that could not go on and would have."""
    return f"{_turned_away(event)} It would have gone on with what it was at."


def expired(agent: str, what: str, expired_at: datetime) -> str:
    """An operation that would have been over."""
    did = "renewed" if what == "heartbeat" else "ended"
    return (
        f"{agent} {did} its operation. That would have been refused: it would have expired at"
        f" {words.moment(expired_at)}."
    )


def run_not_started(event: RunStarted) -> str:
    """What would have come of a run."""
    which = "run by hand" if event.manual else f"tick of {words.moment(event.tick)}"
    return f" So the {which} of the job {event.job} would not have run."


def run_not_skipped(event: RunSkipped) -> str:
    """What would have come of a tick."""
    return f" So the tick of {words.moment(event.tick)} of the job {event.job} would have run."


def _left(state: State, day: BudgetDayRow, agent: str, *, of_agent: bool) -> str:
    part, limit = state.agent_budget(day, agent), state.policy.agent_limits.get(agent)
    if of_agent and limit is not None:
        whose, total, used, reserved = "its own", limit, part.used, part.reserved
    else:
        whose, total, used, reserved = "the day's", day.total, day.used, day.reserved
    return (
        f"of {whose} {words.tokens(total)}, {words.number(used)} would have been used and"
        f" {words.number(reserved)} set aside"
    )


def _in_the_way(conflict: Conflict) -> str:
    holder = conflict.holder
    return (
        f"{holder.agent} would have been at {words.quote(holder.action)} on"
        f" {words.resources(conflict.contested)}"
    )


def _turned_away(event: ConflictDetected) -> str:
    holders = words.listed(event.holders)
    return (
        f"{event.agent} was turned away from {words.quote(event.action)} because {holders} was at"
        f" {words.quote(event.holder_action)} on {words.resources(event.contested)}."
    )

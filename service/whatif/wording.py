"""Differences in sentences: what happened, and what would have happened."""

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
    from service.decide.allowance import Allowance
    from service.decide.operations import Conflict
    from service.memory.state import State


def reservation_refused(state: State, day: BudgetDayRow, event: TokensReserved, judged: Allowance) -> str:
    """Tokens that were reserved and would have been refused."""
    left = _left(state, day, event.agent, of_agent=judged.denied == "agent_limit_reached")
    asked, were = words.tokens(event.tokens), words.were(event.tokens)
    return f"{asked} {were} reserved for {event.agent}. That would have been refused: {left}."


def reservation_allowed(state: State, day: BudgetDayRow, event: TokensDenied) -> str:
    """Tokens that were refused and would have been reserved."""
    left = _left(state, day, event.agent, of_agent=event.reason == "agent_limit_reached")
    asked = words.tokens(event.tokens)
    return f"{event.agent} was refused {asked}. That would have been allowed: {left}."


def claim_refused(event: OperationStarted, conflict: Conflict) -> str:
    """A claim that was made and would have been refused."""
    return (
        f"{event.agent} claimed {words.resources(event.resources)} for {words.quote(event.action)}."
        f" That would have been refused: {_blocking(conflict)}."
    )


def claim_allowed(event: ConflictDetected) -> str:
    """A claim that was refused and would have been made."""
    return f"{_blocked(event)} No claim would have blocked it."


def heartbeat_refused(row: OperationRow, conflict: Conflict) -> str:
    """A heartbeat that was accepted and would have been refused."""
    return (
        f"{row.agent} renewed its claim of {words.resources(row.resources)}. That would have been refused:"
        f" {_blocking(conflict)}."
    )


def heartbeat_allowed(event: ConflictDetected) -> str:
    """A heartbeat that was refused and would have been accepted."""
    return f"{_blocked(event)} It would have kept its own claim."


def expired(agent: str, what: str, expired_at: datetime) -> str:
    """A heartbeat or a finish of an operation that would have expired before."""
    did = "renewed" if what == "heartbeat" else "finished"
    return (
        f"{agent} {did} its operation. That would have been refused: the operation would have expired at"
        f" {words.moment(expired_at)}."
    )


def run_not_started(event: RunStarted) -> str:
    """The effect on a run that was started."""
    if event.manual:
        return f" So the manual run of the job {event.job} would not have started."
    return f" So the tick of the job {event.job} at {words.moment(event.tick)} would not have run."


def run_not_skipped(event: RunSkipped) -> str:
    """The effect on a tick that was skipped."""
    return f" So the tick of the job {event.job} at {words.moment(event.tick)} would have run."


def _left(state: State, day: BudgetDayRow, agent: str, *, of_agent: bool) -> str:
    part, limit = state.agent_budget(day, agent), state.policy.agent_limits.get(agent)
    if of_agent and limit is not None:
        owner, total, used, reserved = "its own", limit, part.used, part.reserved
    else:
        owner, total, used, reserved = "the day's", day.total, day.used, day.reserved
    return (
        f"of {owner} {words.tokens(total)}, {words.number(used)} would have been used and"
        f" {words.number(reserved)} reserved"
    )


def _blocking(conflict: Conflict) -> str:
    holder = conflict.holder
    return (
        f"{holder.agent} would have had a claim on {words.resources(conflict.contested)} for"
        f" {words.quote(holder.action)}"
    )


def _blocked(event: ConflictDetected) -> str:
    holders = words.joined(event.holders)
    return (
        f"{event.agent} was blocked from {words.quote(event.action)}: {holders} had claimed"
        f" {words.resources(event.contested)} for {words.quote(event.holder_action)}."
    )

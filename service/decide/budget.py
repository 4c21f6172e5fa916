"""Decisions about tokens: reservations never overspend the budget, and use is always recorded.

Tokens can be reserved if they are neither used nor reserved, both in the day's total and in the agent's own
limit (`allowance.py`). Unreserved use is recorded even if it exceeds the budget. The first crossing of each
warning percentage in a day is an event of its own.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from eventstore.events import (
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from eventstore.recorded import NewEvent
from projections.budgets import RESERVATIONS, BudgetDayRow, ReservationRow
from service.decide.allowance import (
    Allowance,
    allowance,
    beyond_any_day,
    crossings,
    open_day,
    remaining,
    retry_after_seconds,
)
from service.decide.builder import DecisionBuilder
from service.decide.decision import Decision, DecisionContext, Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.commands import (
        RecordUsage,
        ReleaseReservation,
        ReserveTokens,
        SettleReservation,
        Usage,
    )
    from service.memory.draft import Draft
    from service.memory.state import State

DEFAULT_RESERVATION_SECONDS = 300.0
"""How long a reservation is held by default: longer than a long LLM call."""

_HOW_TO_RECORD = "record what was spent with POST /api/v1/budget/usage"


def reserve(draft: Draft, command: ReserveTokens, at: DecisionContext) -> Decision:
    """Reserve tokens, if the budget and the agent's limit allow it."""
    day = open_day(draft)
    builder = DecisionBuilder(draft, at)
    builder.ensure_active(command.agent)
    allowed = allowance(draft, day, command.agent, command.tokens)
    if allowed.denied:
        return _deny(builder, day, command, allowed)
    reserved = TokensReserved(
        day=day.day,
        reservation_id=at.new_id(),
        agent=command.agent,
        tokens=command.tokens,
        expires_at=at.now + timedelta(seconds=command.ttl_seconds or DEFAULT_RESERVATION_SECONDS),
    )
    builder.add(reserved)
    reply = {
        "id": reserved.reservation_id,
        "expires_at": reserved.expires_at,
        "remaining": allowed.remaining - command.tokens,
    }
    return builder.accept(reply)


def settle(draft: Draft, command: SettleReservation, at: DecisionContext) -> Decision:
    """End a reservation with what was used, charged to the day of the reservation.

    A past day raises no warnings: none of its budget can be saved any more.
    """
    row = draft.rows(RESERVATIONS).get(command.reservation_id)
    if refusal := refusal_if_ended(row, command.reservation_id, at.now):
        return Refused(refusal)
    assert row is not None
    used = command.usage
    builder = DecisionBuilder(draft, at)
    builder.ensure_active(row.agent)
    ended = builder.add(settled(row, used), caused_by=row.position)
    day = open_day(draft)
    left = allowance(draft, day, row.agent, 0).remaining
    if day.day == row.day:
        left += row.tokens - used.tokens_used
        builder.events += crossings(draft, day, day.used + used.tokens_used, caused_by=ended)
    return builder.accept({"id": row.id, "tokens_used": used.tokens_used, "remaining": left})


def release(draft: Draft, command: ReleaseReservation, at: DecisionContext) -> Decision:
    """Release a reservation unused."""
    row = draft.rows(RESERVATIONS).get(command.reservation_id)
    if refusal := refusal_if_ended(row, command.reservation_id, at.now):
        return Refused(refusal)
    assert row is not None
    builder = DecisionBuilder(draft, at)
    builder.ensure_active(row.agent)
    builder.add(released(row, "released"), caused_by=row.position)
    day = open_day(draft)
    left = allowance(draft, day, row.agent, 0).remaining + (row.tokens if day.day == row.day else 0)
    return builder.accept({"id": row.id, "remaining": left})


def record(draft: Draft, command: RecordUsage, at: DecisionContext) -> Decision:
    """Record tokens that were spent."""
    day = open_day(draft)
    builder = DecisionBuilder(draft, at)
    builder.ensure_active(command.agent)
    used = command.usage
    record_use(
        builder,
        day,
        command.agent,
        used,
        operation_id=command.operation_id,
        task_id=command.task_id,
    )
    left = allowance(draft, day, command.agent, 0).remaining - used.tokens_used
    return builder.accept({"tokens": used.tokens_used, "remaining": left})


def record_use(
    builder: DecisionBuilder,
    day: BudgetDayRow,
    agent: str,
    used: Usage,
    *,
    operation_id: str | None = None,
    task_id: str | None = None,
    caused_by: int | None = None,
) -> None:
    """Record a use of tokens and the warnings it triggers, given the day as it was before."""
    event = TokensUsed(
        day=day.day,
        agent=agent,
        tokens=used.tokens_used,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        model=used.model,
        operation_id=operation_id,
        task_id=task_id,
    )
    position = builder.add(event, caused_by)
    builder.events += crossings(builder.before, day, day.used + used.tokens_used, caused_by=position)


def expired(state: State, now: datetime) -> Iterator[NewEvent]:
    """Yield the end of each reservation that was not settled in time."""
    if now < state.no_expiry_before.get(RESERVATIONS.name, now):
        return
    for row in state.expired(RESERVATIONS.name, now):
        yield NewEvent(released(row, "expired"), caused_by=row.position)


def _deny(
    builder: DecisionBuilder, day: BudgetDayRow, command: ReserveTokens, allowed: Allowance
) -> Refused:
    assert allowed.denied
    state = builder.before
    part = state.agent_budget(day, command.agent)
    owner = (
        f"of today's {day.total} tokens, {max(remaining(day), 0)} remain"
        if allowed.denied == "budget_exhausted"
        else f"{command.agent!r} may use {state.policy.agent_limits[command.agent]} tokens today"
        f" and has {max(allowed.remaining, 0)} left"
    )
    event = TokensDenied(
        day=day.day,
        agent=command.agent,
        tokens=command.tokens,
        reason=allowed.denied,
        remaining=allowed.remaining,
    )
    cause = (
        day.position if allowed.denied == "budget_exhausted" else (part.position or state.policy.position)
    )
    refusal = Refusal(
        allowed.denied,
        f"{command.tokens} tokens were requested; {owner}"
        f"{beyond_any_day(state, command.agent, command.tokens)}",
        {"remaining": allowed.remaining, "resets_at": day.ends_at},
        retry_after_seconds(state, day, command.agent, command.tokens, builder.at.now),
    )
    builder.add(event, caused_by=cause)
    return builder.refuse(refusal)


def refusal_if_ended(row: ReservationRow | None, reservation_id: str, now: datetime) -> Refusal | None:
    """Return why a reservation cannot be settled or released, if so."""
    if row is None:
        return Refusal("reservation_not_found", f"there is no reservation {reservation_id}")
    if row.state == "expired" or (row.state == "active" and row.expires_at <= now):
        return Refusal(
            "reservation_expired",
            f"reservation {row.id} has expired; {_HOW_TO_RECORD}",
            {"expired_at": row.expires_at},
        )
    if row.state != "active":
        detail = f"reservation {row.id} was already {row.state}"
        if row.state == "released":
            detail += f"; {_HOW_TO_RECORD}"
        extra = {"state": row.state, "tokens_used": row.tokens_used}
        return Refusal("reservation_ended", detail, extra)
    return None


def settled(row: ReservationRow, used: Usage) -> TokensSettled:
    """Return the event that ends a reservation with what was used."""
    return TokensSettled(
        day=row.day,
        reservation_id=row.id,
        agent=row.agent,
        tokens_reserved=row.tokens,
        tokens_used=used.tokens_used,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        model=used.model,
    )


def released(row: ReservationRow, reason: Literal["released", "expired"]) -> TokensReleased:
    """Return the event that ends a reservation unused: released, or not settled in time."""
    return TokensReleased(
        day=row.day, reservation_id=row.id, agent=row.agent, tokens_reserved=row.tokens, reason=reason
    )

"""policy, budget_days, budgets and reservations: what may be spent, was spent, and is reserved."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING, Literal

from eventstore.events import (
    BudgetDayReset,
    BudgetThresholdCrossed,
    PolicySet,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from projections.projection import MissingRow, Projection, Row, Table, key_in, require

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View

THE_POLICY = "squad"
"""The key of the only row of `policy`."""

ReservationState = Literal["active", "settled", "released", "expired"]


class PolicyRow(Row, frozen=True):
    """The rules in force, set at `set_at` by `set_by`."""

    name: str
    daily_tokens: int
    agent_limits: dict[str, int]
    warning_percents: list[int]
    reset_hour: int
    timezone: str
    conflict_window_seconds: float
    operation_timeout_seconds: float
    idle_after_minutes: float
    offline_after_minutes: float
    set_by: str
    set_at: datetime
    position: int


class BudgetDayRow(Row, frozen=True):
    """A whole budget day. It is open (`closed_at` is None) until the next one begins."""

    day: date
    total: int
    used: int
    reserved: int
    warned_percent: int
    starts_at: datetime
    ends_at: datetime
    closed_at: datetime | None
    position: int


class BudgetRow(Row, frozen=True):
    """One agent's share of one day."""

    day: date
    agent: str
    used: int
    reserved: int
    position: int


class ReservationRow(Row, frozen=True):
    """Reserved tokens. They count towards `day`, whenever the reservation ends."""

    id: str
    agent: str
    tokens: int
    day: date
    state: ReservationState
    tokens_used: int | None
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    position: int


POLICY = Table[str, PolicyRow](
    "policy",
    PolicyRow,
    key=("name",),
    types=(
        "text",
        "bigint",
        "jsonb",
        "jsonb",
        "integer",
        "text",
        "double precision",
        "double precision",
        "double precision",
        "double precision",
        "text",
        "timestamptz",
        "bigint",
    ),
)
BUDGET_DAYS = Table[date, BudgetDayRow](
    "budget_days",
    BudgetDayRow,
    key=("day",),
    types=(
        "date",
        "bigint",
        "bigint",
        "bigint",
        "integer",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "bigint",
    ),
)
BUDGETS = Table[tuple[date, str], BudgetRow](
    "budgets", BudgetRow, key=("day", "agent"), types=("date", "text", "bigint", "bigint", "bigint")
)
RESERVATIONS = Table[str, ReservationRow](
    "reservations",
    ReservationRow,
    key=("id",),
    types=(
        "uuid",
        "text",
        "bigint",
        "date",
        "text",
        "bigint",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "bigint",
    ),
)

budgets = Projection("budgets", (POLICY, BUDGET_DAYS, BUDGETS, RESERVATIONS))


def _count(view: View, day: date, agent: str, position: int, *, used: int = 0, reserved: int = 0) -> None:
    """Add to the counts of the day and of the agent."""
    whole = require(view, BUDGET_DAYS, day)
    whole = whole.replaced(used=whole.used + used, reserved=whole.reserved + reserved, position=position)
    view.rows(BUDGET_DAYS).put(day, whole)
    rows = view.rows(BUDGETS)
    part = rows.get((day, agent)) or BudgetRow(day, agent, 0, 0, 0)
    rows.put((day, agent), BudgetRow(day, agent, part.used + used, part.reserved + reserved, position))


_DAY_ROW = key_in(BUDGET_DAYS, "day")
_COUNT_ROWS = (_DAY_ROW, key_in(BUDGETS, "day", "agent"))
_RESERVATION_ROW = (*_COUNT_ROWS, key_in(RESERVATIONS, "reservation_id"))


@budgets.on(PolicySet, reads=(_DAY_ROW,))
def _policy_set(view: View, event: PolicySet, recorded: AnyRecorded) -> None:
    row = PolicyRow(
        THE_POLICY,
        event.daily_tokens,
        event.agent_limits,
        event.warning_percents,
        event.reset_hour,
        event.timezone,
        event.conflict_window_seconds,
        event.operation_timeout_seconds,
        event.idle_after_minutes,
        event.offline_after_minutes,
        recorded.actor,
        recorded.recorded_at,
        recorded.position,
    )
    view.rows(POLICY).put(THE_POLICY, row)
    if event.day:
        day = require(view, BUDGET_DAYS, event.day).replaced(
            total=event.daily_tokens, position=recorded.position
        )
        view.rows(BUDGET_DAYS).put(event.day, day)


@budgets.on(BudgetDayReset, reads=(_DAY_ROW, key_in(BUDGET_DAYS, "previous_day")))
def _day_reset(view: View, event: BudgetDayReset, recorded: AnyRecorded) -> None:
    days = view.rows(BUDGET_DAYS)
    if event.previous_day and event.previous_day != event.day:
        previous = require(view, BUDGET_DAYS, event.previous_day)
        days.put(
            event.previous_day,
            previous.replaced(closed_at=recorded.recorded_at, position=recorded.position),
        )
    # The same day again: only its bounds moved, because the reset hour or the time zone was changed.
    row = days.get(event.day) or BudgetDayRow(
        event.day, event.total, 0, 0, 0, event.starts_at, event.ends_at, None, recorded.position
    )
    row = row.replaced(
        total=event.total, starts_at=event.starts_at, ends_at=event.ends_at, position=recorded.position
    )
    days.put(event.day, row)


def fold_reservation(
    row: ReservationRow | None,
    event: TokensReserved | TokensSettled | TokensReleased,
    recorded: AnyRecorded,
) -> ReservationRow:
    """Return a reservation after one of its events, the first of which creates it."""
    if isinstance(event, TokensReserved):
        return ReservationRow(
            event.reservation_id,
            event.agent,
            event.tokens,
            event.day,
            "active",
            None,
            recorded.recorded_at,
            event.expires_at,
            None,
            recorded.position,
        )
    if row is None:
        raise MissingRow(RESERVATIONS, event.reservation_id)
    ended_at, position = recorded.recorded_at, recorded.position
    if isinstance(event, TokensSettled):
        used = event.tokens_used
        return row.replaced(state="settled", tokens_used=used, ended_at=ended_at, position=position)
    return row.replaced(state=event.reason, ended_at=ended_at, position=position)


@budgets.on(TokensReserved, reads=_COUNT_ROWS, creates=(key_in(RESERVATIONS, "reservation_id"),))
def _reserved(view: View, event: TokensReserved, recorded: AnyRecorded) -> None:
    view.rows(RESERVATIONS).put(event.reservation_id, fold_reservation(None, event, recorded))
    _count(view, event.day, event.agent, recorded.position, reserved=event.tokens)


@budgets.on(TokensSettled, TokensReleased, reads=_RESERVATION_ROW)
def _ended(view: View, event: TokensSettled | TokensReleased, recorded: AnyRecorded) -> None:
    rows = view.rows(RESERVATIONS)
    row = fold_reservation(rows.get(event.reservation_id), event, recorded)
    rows.put(event.reservation_id, row)
    _count(
        view,
        event.day,
        event.agent,
        recorded.position,
        used=row.tokens_used or 0,
        reserved=-event.tokens_reserved,
    )


@budgets.on(TokensUsed, reads=_COUNT_ROWS)
def _used(view: View, event: TokensUsed, recorded: AnyRecorded) -> None:
    _count(view, event.day, event.agent, recorded.position, used=event.tokens)


@budgets.on(BudgetThresholdCrossed, reads=(_DAY_ROW,))
def _threshold_crossed(view: View, event: BudgetThresholdCrossed, recorded: AnyRecorded) -> None:
    day = require(view, BUDGET_DAYS, event.day)
    view.rows(BUDGET_DAYS).put(
        event.day,
        day.replaced(warned_percent=max(day.warned_percent, event.percent), position=recorded.position),
    )

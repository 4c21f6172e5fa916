"""The events of the policy and of tokens."""

from __future__ import annotations

from datetime import date, datetime
from typing import ClassVar, Literal

from eventstore.events.base import Event

WarningLevel = Literal["info", "warning", "critical"]
DenialReason = Literal["budget_exhausted", "agent_limit_reached"]


class PolicySet(Event, frozen=True, kw_only=True):
    """The policy from here on, in full, so that one event holds all of its rules."""

    type: ClassVar[str] = "policy_set"
    daily_tokens: int
    agent_limits: dict[str, int]
    warning_percents: list[int]
    reset_hour: int
    timezone: str
    conflict_window_seconds: float
    operation_timeout_seconds: float
    idle_after_minutes: float
    offline_after_minutes: float
    day: date | None
    """The budget day whose total this changes; None if no current day continues under these rules."""

    @property
    def stream(self) -> str:
        """There is one policy."""
        return "policy"


class _BudgetEvent(Event, frozen=True, kw_only=True):
    day: date

    @property
    def stream(self) -> str:
        return f"budget-{self.day.isoformat()}"


class _ReservationEvent(Event, frozen=True, kw_only=True):
    day: date
    reservation_id: str

    @property
    def stream(self) -> str:
        return f"reservation-{self.reservation_id}"


class TokensReserved(_ReservationEvent, frozen=True, kw_only=True):
    """Tokens were set aside for an agent until `expires_at`."""

    type: ClassVar[str] = "tokens_reserved"
    agent: str
    tokens: int
    expires_at: datetime


class TokensSettled(_ReservationEvent, frozen=True, kw_only=True):
    """A reservation ended with the tokens actually used, which count on the day of the reservation."""

    type: ClassVar[str] = "tokens_settled"
    agent: str
    tokens_reserved: int
    tokens_used: int


class TokensReleased(_ReservationEvent, frozen=True, kw_only=True):
    """A reservation ended unused: it was released, or it expired."""

    type: ClassVar[str] = "tokens_released"
    agent: str
    tokens_reserved: int
    reason: Literal["released", "expired"]


class TokensUsed(_BudgetEvent, frozen=True, kw_only=True):
    """Tokens were spent. Recorded even beyond the budget, because it is a fact."""

    type: ClassVar[str] = "tokens_used"
    agent: str
    tokens: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    model: str | None = None
    operation_id: str | None = None
    task_id: str | None = None


class TokensDenied(_BudgetEvent, frozen=True, kw_only=True):
    """A reservation was refused: it exceeded the budget of the day or the limit of the agent."""

    type: ClassVar[str] = "tokens_denied"
    agent: str
    tokens: int
    reason: DenialReason
    remaining: int


class BudgetThresholdCrossed(_BudgetEvent, frozen=True, kw_only=True):
    """The usage of the day crossed a percentage of the budget, for the first time that day."""

    type: ClassVar[str] = "budget_threshold_crossed"
    percent: int
    level: WarningLevel
    used: int
    total: int


class BudgetDayReset(_BudgetEvent, frozen=True, kw_only=True):
    """A budget day began. It closes the previous day, and has its usage."""

    type: ClassVar[str] = "budget_day_reset"
    starts_at: datetime
    ends_at: datetime
    total: int
    previous_day: date | None
    previous_used: int
    previous_total: int
    previous_agents: dict[str, int]

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
    """The squad's tokens per budget day."""
    agent_limits: dict[str, int]
    """Tokens per budget day by agent; any other agent has no limit of its own."""
    warning_percents: list[int]
    """The percentages of the budget at which a warning is recorded."""
    reset_hour: int
    """The hour at which a budget day begins."""
    timezone: str
    """The time zone of `reset_hour`, and of jobs that name none."""
    conflict_window_seconds: float
    """How long a claim blocks others without a heartbeat."""
    operation_timeout_seconds: float
    """When an operation expires without a heartbeat, unless it says otherwise."""
    idle_after_minutes: float
    """When a silent agent counts as idle."""
    offline_after_minutes: float
    """When a silent agent counts as offline."""
    day: date | None
    """The budget day whose total this changes; null if no current day continues under these rules."""

    @property
    def stream(self) -> str:
        """There is one policy."""
        return "policy"


class _BudgetEvent(Event, frozen=True, kw_only=True):
    day: date
    """The budget day, named after the local date on which it began."""

    @property
    def stream(self) -> str:
        return f"budget-{self.day.isoformat()}"


class _ReservationEvent(Event, frozen=True, kw_only=True):
    day: date
    """The budget day that the tokens belong to."""
    reservation_id: str
    """The reservation."""

    @property
    def stream(self) -> str:
        return f"reservation-{self.reservation_id}"


class TokensReserved(_ReservationEvent, frozen=True, kw_only=True):
    """Tokens were set aside for an agent until `expires_at`."""

    type: ClassVar[str] = "tokens_reserved"
    agent: str
    """The agent that may spend them."""
    tokens: int
    """How many."""
    expires_at: datetime
    """When they are released, unless settled before."""


class TokensSettled(_ReservationEvent, frozen=True, kw_only=True):
    """A reservation ended with the tokens actually used, which count on the day of the reservation."""

    type: ClassVar[str] = "tokens_settled"
    schema_version: ClassVar[int] = 2
    agent: str
    """The agent that spent them."""
    tokens_reserved: int
    """How many were reserved."""
    tokens_used: int
    """How many were used; can be more than were reserved."""
    input_tokens: int | None = None
    """How many of them were input, if reported."""
    output_tokens: int | None = None
    """How many of them were output, if reported."""
    model: str | None = None
    """The language model, if reported."""


class TokensReleased(_ReservationEvent, frozen=True, kw_only=True):
    """A reservation ended unused: it was released, or it expired."""

    type: ClassVar[str] = "tokens_released"
    agent: str
    """The agent that had reserved them."""
    tokens_reserved: int
    """How many."""
    reason: Literal["released", "expired"]
    """Why."""


class TokensUsed(_BudgetEvent, frozen=True, kw_only=True):
    """Tokens were spent. Recorded even beyond the budget, because it is a fact."""

    type: ClassVar[str] = "tokens_used"
    agent: str
    """The agent that spent them."""
    tokens: int
    """How many, in all."""
    input_tokens: int | None = None
    """How many of them were input, if reported."""
    output_tokens: int | None = None
    """How many of them were output, if reported."""
    model: str | None = None
    """The language model, if reported."""
    operation_id: str | None = None
    """The operation that they were spent on, if reported."""
    task_id: str | None = None
    """The task that they were spent on, if reported."""


class TokensDenied(_BudgetEvent, frozen=True, kw_only=True):
    """A reservation was refused: it exceeded the budget of the day or the limit of the agent."""

    type: ClassVar[str] = "tokens_denied"
    agent: str
    """The agent that asked."""
    tokens: int
    """How many it asked for."""
    reason: DenialReason
    """Whether the squad's budget or the agent's limit was exceeded."""
    remaining: int
    """How many it could have had."""


class BudgetThresholdCrossed(_BudgetEvent, frozen=True, kw_only=True):
    """The usage of the day crossed a percentage of the budget, for the first time that day."""

    type: ClassVar[str] = "budget_threshold_crossed"
    percent: int
    """The percentage of the budget."""
    level: WarningLevel
    """How serious it is."""
    used: int
    """The tokens used so far that day."""
    total: int
    """The budget of the day."""


class BudgetDayReset(_BudgetEvent, frozen=True, kw_only=True):
    """A budget day began. It closes the previous day, and has its usage."""

    type: ClassVar[str] = "budget_day_reset"
    starts_at: datetime
    """When it begins."""
    ends_at: datetime
    """When the next one begins."""
    total: int
    """Its budget."""
    previous_day: date | None
    """The day before; null if there was none."""
    previous_used: int
    """The tokens used on that day."""
    previous_total: int
    """The budget of that day."""
    previous_agents: dict[str, int]
    """The tokens used on that day, by agent."""

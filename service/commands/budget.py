"""Commands about the policy and about tokens."""

from __future__ import annotations

from pydantic import Field, model_validator

from service.commands.base import Command
from service.commands.usage import Usage, UsageReport, usage_of
from service.values import ExternalId, Id, Name, PositiveTokens, Timezone, Tokens, TtlSeconds


class SetPolicy(Command):
    """Change the squad's rules; those that are not named stay unchanged."""

    daily_tokens: Tokens | None = None
    agent_limits: dict[Name, Tokens] | None = None
    reset_hour: int | None = Field(default=None, ge=0, le=23)
    timezone: Timezone | None = None
    conflict_window_seconds: TtlSeconds | None = None
    operation_timeout_seconds: TtlSeconds | None = None
    idle_after_minutes: float | None = Field(default=None, gt=0, le=1_000_000)
    offline_after_minutes: float | None = Field(default=None, gt=0, le=1_000_000)


class SetBudget(Command):
    """Change the daily budget, the agents' limits, or both."""

    daily_tokens: Tokens | None = None
    agent_limits: dict[Name, Tokens] | None = Field(default=None, max_length=1_000)
    """Tokens per day by agent. Replaces all limits; an agent that is not named has none, and {} clears all.
    In `POST /api/v1/whatif`, by contrast, other agents keep theirs."""

    @model_validator(mode="after")
    def _check_not_empty(self) -> SetBudget:
        if self.daily_tokens is None and self.agent_limits is None:
            raise ValueError("name daily_tokens, agent_limits, or both")
        return self


class CheckBudget(Command):
    """Ask whether a reservation would be granted. Changes nothing."""

    agent: Name
    tokens: PositiveTokens


class ReserveTokens(Command):
    """Reserve tokens before spending them."""

    agent: Name
    tokens: PositiveTokens
    ttl_seconds: TtlSeconds | None = None
    """After how many seconds an unsettled reservation expires; default 300."""


class SettleReservation(UsageReport):
    """End a reservation with what was actually used: `tokens_used`, or input and output tokens."""

    reservation_id: Id

    @property
    def usage(self) -> Usage:
        """What was used, whichever way it was given."""
        return usage_of("tokens_used", self.tokens_used, self.input_tokens, self.output_tokens, self.model)


class ReleaseReservation(Command):
    """Release a reservation unused."""

    reservation_id: Id


class RecordUsage(Command):
    """Record tokens that were spent. Never refused: either `tokens`, or input and output tokens."""

    agent: Name
    tokens: Tokens | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    model: Name | None = None
    """The model that they were spent on."""
    operation_id: Id | None = None
    """The operation that they were spent for."""
    task_id: ExternalId | None = None
    """The task that they were spent for; any id."""

    @model_validator(mode="after")
    def _check_counts(self) -> RecordUsage:
        _ = self.usage
        return self

    @property
    def usage(self) -> Usage:
        """What was spent, whichever way it was given."""
        return usage_of("tokens", self.tokens, self.input_tokens, self.output_tokens, self.model)

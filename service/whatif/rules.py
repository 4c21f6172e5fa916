"""The other rules: which policy fields differ, and for which part of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import structs
from pydantic import Field, model_validator

from service.commands.base import Command
from service.values import Moment, Name, Tokens, TtlSeconds

if TYPE_CHECKING:
    from eventstore.events import PolicySet

Percent = Annotated[int, Field(ge=1, le=100)]


class OtherRules(Command):
    """Judge the same history by other rules. Fields left out stay as in the log; nothing is changed."""

    daily_tokens: Tokens | None = None
    agent_limits: dict[Name, Tokens | None] | None = Field(default=None, max_length=1_000)
    """Tokens per day by agent, in place of the agent's limit; null lifts it. Other agents keep theirs;
    `PUT /api/v1/budget` would lift them."""
    conflict_window_seconds: TtlSeconds | None = None
    operation_timeout_seconds: TtlSeconds | None = None
    warning_percents: list[Percent] | None = Field(default=None, max_length=20)
    since: Moment | None = None
    """When the other rules start to apply; by default, from the beginning."""
    until: Moment | None = None
    """Up to when history is judged, exclusive; by default, up to now."""

    @model_validator(mode="after")
    def _in_order(self) -> OtherRules:
        if self.since and self.until and self.since >= self.until:
            raise ValueError("since must be before until")
        return self

    @property
    def changes_claims(self) -> bool:
        """Whether claims would block or last for a different time."""
        return self.conflict_window_seconds is not None or self.operation_timeout_seconds is not None

    def in_place_of(self, policy: PolicySet) -> PolicySet:
        """A policy of the log, overridden by these rules."""
        named: dict[str, Any] = {
            name: value
            for name in ("daily_tokens", "conflict_window_seconds", "operation_timeout_seconds")
            if (value := getattr(self, name)) is not None
        }
        if self.warning_percents is not None:
            named["warning_percents"] = sorted(set(self.warning_percents))
        if self.agent_limits:
            limits = {**policy.agent_limits, **self.agent_limits}
            named["agent_limits"] = {agent: limit for agent, limit in limits.items() if limit is not None}
        return structs.replace(policy, **named)

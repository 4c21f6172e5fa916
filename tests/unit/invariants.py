"""The invariants of claims and tokens, checked from the events alone and independently of the folds."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import TYPE_CHECKING

from eventstore.events import (
    ConflictDetected,
    Event,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    PolicySet,
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.recorded import Recorded


class Invariants:
    """A resource has one holder, reservations keep to the budget, and refusals have a reason."""

    def __init__(self) -> None:
        self.total = 0
        self.limits: dict[str, int] = {}
        self.used = Counter[tuple[date, str]]()
        self.held: dict[str, TokensReserved] = {}
        self.claims: dict[str, tuple[int, OperationStarted, OperationStarted | OperationRenewed]] = {}

    def take(self, event: Event, recorded: Recorded) -> None:
        """Check and apply the next event.

        Raises:
            AssertionError: the event violates an invariant.
        """
        match event:
            case PolicySet():
                self.total, self.limits = event.daily_tokens, event.agent_limits
            case TokensReserved():
                self.held[event.reservation_id] = event
                assert self._committed(event.day) <= self.total
                assert self._committed(event.day, event.agent) <= self.limits.get(event.agent, self.total)
            case TokensDenied(reason="budget_exhausted"):
                assert self._committed(event.day) + event.tokens > self.total
                assert recorded.caused_by
            case TokensDenied():
                assert self._committed(event.day, event.agent) + event.tokens > self.limits[event.agent]
                assert recorded.caused_by
            case TokensSettled():
                del self.held[event.reservation_id]
                self.used[event.day, event.agent] += event.tokens_used
            case TokensReleased():
                del self.held[event.reservation_id]
            case TokensUsed():
                self.used[event.day, event.agent] += event.tokens
            case OperationStarted():
                self.claims[event.operation_id] = (recorded.position, event, event)
                self._check_claim(event.operation_id, recorded.recorded_at)
            case OperationRenewed():
                position, start, _ = self.claims[event.operation_id]
                self.claims[event.operation_id] = (position, start, event)
                self._check_claim(event.operation_id, recorded.recorded_at)
            case ConflictDetected():
                self._check_conflict(event, recorded)
            case OperationFinished() | OperationExpired():
                del self.claims[event.operation_id]
            case _:
                pass

    def _committed(self, day: date, agent: str | None = None) -> int:
        used = sum(n for (on, who), n in self.used.items() if on == day and agent in (None, who))
        held = sum(r.tokens for r in self.held.values() if r.day == day and agent in (None, r.agent))
        return used + held

    def _check_claim(self, operation_id: str, now: datetime) -> None:
        """Check that no other claim on its resources still blocks, and that they all have lower tokens."""
        token, claim, _ = self.claims[operation_id]
        for other_token, start, last in self.claims.values():
            if start is claim or last.expires_at <= now:
                continue
            if claim.resources.items() & start.resources.items():
                assert last.blocks_until <= now
                assert other_token < token

    def _check_conflict(self, event: ConflictDetected, recorded: Recorded) -> None:
        """Check that the claim in the way still blocks, or is newer than the one that was to be renewed."""
        token, start, last = self.claims[event.operation_id]
        assert recorded.caused_by == token
        assert last.expires_at > recorded.recorded_at
        assert event.contested.items() <= event.resources.items() & start.resources.items()
        others = [
            other_token
            for other_token, other, _ in self.claims.values()
            if (other.agent, other.action, other.resources) == (event.agent, event.action, event.resources)
        ]
        assert last.blocks_until > recorded.recorded_at or min(others) < token

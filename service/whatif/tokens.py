"""Requests for tokens, judged again, and the warnings that would have been raised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from eventstore.events import BudgetThresholdCrossed, TokensSettled, TokensUsed
from projections.budgets import BUDGET_DAYS
from service.decide.allowance import allowance, crossings
from service.whatif import wording
from service.whatif.report import Warned

if TYPE_CHECKING:
    from datetime import date, datetime

    from eventstore.events import (
        BudgetDayReset,
        PolicySet,
        TokensDenied,
        TokensReleased,
        TokensReserved,
    )
    from eventstore.recorded import Recorded
    from service.whatif.trial import Trial


class Tokens:
    """The budget part of a trial."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._squad = trial.squad
        self._warned: dict[tuple[date, int], datetime] = {}
        self._would_warn: dict[tuple[date, int], datetime] = {}

    # Rules and days -------------------------------------------------------------------------------------

    def set_policy(self, event: PolicySet, at: Recorded) -> None:
        """Apply a policy of the log, overridden by the other rules."""
        trial = self._trial
        trial.policy = event
        self._squad.spend(trial.rules.in_place_of(event) if trial.judging else event, at)
        if event.day:
            self._raise_warnings(event.day, at)

    def begin_day(self, event: BudgetDayReset, at: Recorded) -> None:
        """Begin a day and close the previous one."""
        trial = self._trial
        if trial.judging and trial.rules.daily_tokens is not None:
            event = structs.replace(event, total=trial.rules.daily_tokens)
        self._squad.spend(event, at)
        self._squad.forget_past_days()
        self.compare_warnings(event.day)

    def warn(self, event: BudgetThresholdCrossed, at: Recorded) -> None:
        """Note a warning of the log."""
        self._warned[event.day, event.percent] = at.recorded_at
        if not self._trial.judging:
            self._squad.spend(event, at)
            self._would_warn[event.day, event.percent] = at.recorded_at

    def compare_warnings(self, today: date | None = None) -> None:
        """Report the warnings of days other than `today` that would have come at a different time."""
        over = {key for key in (*self._warned, *self._would_warn) if key[0] != today}
        for day, percent in sorted(over):
            recorded_at = self._warned.pop((day, percent), None)
            instead_at = self._would_warn.pop((day, percent), None)
            if recorded_at != instead_at:
                self._trial.report.warn(Warned(day, percent, recorded_at, instead_at))

    def _raise_warnings(self, day: date, at: Recorded) -> None:
        row = self._squad.rows(BUDGET_DAYS).get(day)
        if not self._trial.judging or row is None or row.closed_at:
            return
        for crossing in crossings(self._squad, row, row.used, caused_by=at.position):
            crossed = crossing.event
            assert isinstance(crossed, BudgetThresholdCrossed)
            self._squad.spend(crossed, at)
            self._would_warn[day, crossed.percent] = at.recorded_at

    # Requests -------------------------------------------------------------------------------------------

    def reserve(self, event: TokensReserved, at: Recorded) -> None:
        """Judge a reservation that was made."""
        trial, day = self._trial, self._squad.rows(BUDGET_DAYS).get(event.day)
        if trial.judging and day:
            trial.report.requests += 1
            judged = allowance(self._squad, day, event.agent, event.tokens)
            if judged.denied:
                sentence = wording.reservation_refused(self._squad, day, event, judged)
                trial.refused[event.reservation_id] = trial.record_difference(
                    at, event, "reservation", "refused", sentence, tokens=event.tokens
                )
                return
        self._squad.spend(event, at)

    def deny(self, event: TokensDenied, at: Recorded) -> None:
        """Judge a reservation that was refused."""
        trial, day = self._trial, self._squad.rows(BUDGET_DAYS).get(event.day)
        if not trial.judging or day is None:
            return
        trial.report.requests += 1
        if allowance(self._squad, day, event.agent, event.tokens).denied:
            return
        sentence = wording.reservation_allowed(self._squad, day, event)
        trial.record_difference(at, event, "reservation", "allowed", sentence, tokens=event.tokens)
        # How much it would have used is not known; the requested amount is the best estimate in the log.
        self.use(TokensUsed(day=event.day, agent=event.agent, tokens=event.tokens), at)

    def use(self, event: TokensUsed, at: Recorded) -> None:
        """Count tokens that were used, which is a fact under any rules."""
        self._squad.spend(event, at)
        self._raise_warnings(event.day, at)

    def end(self, event: TokensSettled | TokensReleased, at: Recorded) -> None:
        """End a reservation. If it would have been refused, nothing would have been used."""
        if event.reservation_id in self._trial.refused:
            del self._trial.refused[event.reservation_id]
            if isinstance(event, TokensSettled):
                self._trial.report.tokens_not_used += event.tokens_used
            return
        self._squad.end_reservation(event, at)
        if isinstance(event, TokensSettled):
            self._raise_warnings(event.day, at)

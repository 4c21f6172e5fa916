"""The same requests, judged again in order by other rules.

The log has every request, whether it was allowed or refused: a reservation as `tokens_reserved` or
`tokens_denied`, a claim as `operation_started` or `conflict_detected`, a heartbeat as `operation_renewed`
or, again, `conflict_detected`. Each is judged on the state that these rules would have led to, by the
functions that judge commands. What agents did with a grant counts only if they would have been granted it;
tokens that they used without a reservation always count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from eventstore.events import (
    BudgetDayReset,
    BudgetThresholdCrossed,
    ConflictDetected,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    PolicySet,
    RunSkipped,
    RunStarted,
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from service.whatif import wording
from service.whatif.claims import Claims
from service.whatif.tokens import Tokens
from service.whatif.trial import Trial

if TYPE_CHECKING:
    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.memory.state import State
    from service.whatif.report import Report
    from service.whatif.rules import OtherRules

KINDS = (
    PolicySet,
    BudgetDayReset,
    BudgetThresholdCrossed,
    TokensReserved,
    TokensSettled,
    TokensReleased,
    TokensUsed,
    TokensDenied,
    OperationStarted,
    OperationRenewed,
    OperationFinished,
    OperationExpired,
    ConflictDetected,
    RunStarted,
    RunSkipped,
)
"""The event types that the simulation uses."""


class Simulation:
    """Takes the events of a log in order, and reports at the end what would have been different.

    If it is given a squad to start from, the first event is the one after the squad's head.
    """

    def __init__(self, rules: OtherRules, after: int = 0, squad: State | None = None) -> None:
        self._trial = Trial(rules, after, squad)
        self._tokens = Tokens(self._trial)
        self._claims = Claims(self._trial)

    @property
    def squad(self) -> State:
        """The squad as it would be now."""
        return self._trial.squad

    def process(self, event: AnyEvent, at: Recorded) -> None:
        """Take the next event; types other than `KINDS` are ignored."""
        trial, tokens, claims = self._trial, self._tokens, self._claims
        if not trial.judging and at.position > trial.report.after:
            self._apply_rules(at)
        claims.pass_time(at.recorded_at)
        match event:
            case PolicySet():
                tokens.set_policy(event, at)
            case BudgetDayReset():
                tokens.begin_day(event, at)
            case BudgetThresholdCrossed():
                tokens.warn(event, at)
            case TokensReserved():
                tokens.reserve(event, at)
            case TokensDenied():
                tokens.deny(event, at)
            case TokensSettled() | TokensReleased():
                tokens.end(event, at)
            case TokensUsed():
                tokens.use(event, at)
            case OperationStarted():
                claims.start(event, at)
            case OperationRenewed():
                claims.renew(event, at)
            case OperationFinished():
                claims.finish(event, at)
            case OperationExpired():
                claims.expire(event)
            case ConflictDetected():
                claims.conflict(event, at)
            case RunStarted():
                self._note_run(event)
            case RunSkipped():
                self._note_skip(event, at)
            case _:
                pass

    def end(self, upto: int) -> Report:
        """The report, once the last event up to that position was taken."""
        self._tokens.compare_warnings()
        self._trial.report.upto = upto
        return self._trial.report

    def _apply_rules(self, at: Recorded) -> None:
        """Apply the other rules from here on, as if they had been set just before this event."""
        trial = self._trial
        trial.judging = True
        if trial.policy:
            day = trial.squad.day
            policy = structs.replace(trial.policy, day=day.day if day else None)
            self._tokens.set_policy(policy, at)

    def _note_run(self, event: RunStarted) -> None:
        """Count a run that would not have started, because its tokens or claim would have been refused."""
        trial = self._trial
        refused = [
            needed for needed in (event.reservation_id, event.operation_id) if needed in trial.refused
        ]
        trial.report.runs_refused += bool(refused)
        for needed in refused:
            if needed and (listed := trial.refused[needed]):
                listed.sentence += wording.run_not_started(event)

    def _note_skip(self, event: RunSkipped, at: Recorded) -> None:
        """Count a skipped tick that would have run, because its request would have been allowed."""
        lifted = self._trial.lifted
        if lifted and lifted.position == at.caused_by:
            self._trial.report.runs_allowed += 1
            if lifted.told:
                lifted.told.sentence += wording.run_not_skipped(event)

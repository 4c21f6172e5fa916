"""What all judging shares: the rules, the squad as it would be, and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from eventstore.events import PolicySet
from service.whatif.report import Difference, Report
from service.whatif.simulated_state import SimulatedState

if TYPE_CHECKING:
    from eventstore.recorded import Recorded
    from service.memory.state import State
    from service.whatif.report import Verdict, What
    from service.whatif.rules import OtherRules


class _Asked(Protocol):
    @property
    def agent(self) -> str: ...


class LiftedRefusal(NamedTuple):
    """A refusal of the log that would not have happened, and its difference if that is listed."""

    position: int
    told: Difference | None


class Trial:
    """Two squads on one log: the recorded one, and the one that would have been."""

    def __init__(self, rules: OtherRules, after: int, squad: State | None) -> None:
        self.rules = rules
        self.report = Report(after)
        self.squad = SimulatedState()
        self.policy: PolicySet | None = None
        """The recorded policy."""
        if squad and squad.has_policy:
            self.squad.load(squad)
            rules_then = {
                name: getattr(squad.policy, name) for name in PolicySet.__struct_fields__ if name != "day"
            }
            self.policy = PolicySet(**rules_then, day=None)
        self.judging = after == 0
        """Whether the other rules apply yet. Until then the two squads are the same."""
        self.refused: dict[str, Difference | None] = {}
        """Recorded reservations and operations that would have been refused, until they end in the log;
        each with its difference if that is listed."""
        self.lifted: LiftedRefusal | None = None
        """The last one."""

    def record_difference(
        self,
        at: Recorded,
        event: _Asked,
        what: What,
        instead: Verdict,
        sentence: str,
        *,
        tokens: int | None = None,
    ) -> Difference | None:
        """Count a request that would have been judged differently; return the difference if listed."""
        day = self.squad.day
        difference = Difference(
            position=at.position,
            recorded_at=at.recorded_at,
            day=day.day if day else at.recorded_at.date(),
            agent=event.agent,
            what=what,
            recorded="allowed" if instead == "refused" else "refused",
            instead=instead,
            tokens=tokens,
            sentence=sentence,
        )
        listed = difference if self.report.count(difference) else None
        if instead == "allowed":
            self.lifted = LiftedRefusal(at.position, listed)
        return listed

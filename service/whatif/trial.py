"""What all judging shares: the rules, the squad as it would be, and what is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from eventstore.events import PolicySet
from service.whatif.report import Difference, Report
from service.whatif.simulated import Simulated

if TYPE_CHECKING:
    from eventstore.recorded import Recorded
    from service.memory.state import State
    from service.whatif.report import Verdict, What
    from service.whatif.rules import OtherRules


class _Asked(Protocol):
    @property
    def agent(self) -> str: ...


class LiftedRefusal(NamedTuple):
    """A refusal of the log that would not have been, and its difference where that is told."""

    position: int
    told: Difference | None


class Trial:
    """Two squads on one log: the one that it tells of, and the one that would have been."""

    def __init__(self, rules: OtherRules, after: int, squad: State | None) -> None:
        self.rules = rules
        self.report = Report(after)
        self.squad = Simulated()
        self.policy: PolicySet | None = None
        """As the log has it."""
        if squad and squad.has_policy:
            self.squad.load(squad)
            rules_then = {
                name: getattr(squad.policy, name) for name in PolicySet.__struct_fields__ if name != "day"
            }
            self.policy = PolicySet(**rules_then, day=None)
        self.judging = after == 0
        """Whether the other rules hold yet. Until then the two squads are one."""
        self.refused: dict[str, Difference | None] = {}
        """Reservations and operations that the log has and that would not have been, until they end there;
        each with its difference where that is told."""
        self.lifted: LiftedRefusal | None = None
        """The last one."""

    def differ(
        self,
        at: Recorded,
        event: _Asked,
        what: What,
        instead: Verdict,
        sentence: str,
        *,
        tokens: int | None = None,
    ) -> Difference | None:
        """Counts a request that would have been judged otherwise; gives the difference where it is told."""
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
        told = difference if self.report.count(difference) else None
        if instead == "allowed":
            self.lifted = LiftedRefusal(at.position, told)
        return told

"""Why an agent has its status."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from projections.agents import AgentRow, agents
from service.explain import words
from service.explain.narration import rules_at
from service.explain.sentences import dated, sentence

if TYPE_CHECKING:
    from eventstore.events import AgentRegistered, AgentStatusChanged
    from eventstore.recorded import Recorded
    from projections.projection import Table
    from service.explain.narration import Narration
    from service.explain.record import LoggedEvent, LogQueries

MAX_SCANNED_EVENTS = (10, 500)
"""How many of an agent's latest events are searched for a sign of life: first few, then more."""


async def status_changed(
    event: AgentStatusChanged, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """The agent's last sign of life, and the rules by which that was too long ago."""
    narration.facts |= {"agent": event.agent, "previous": event.previous, "status": event.status}
    if event.reason != "inactivity":
        return
    rules = await rules_at(past, at.position)
    if rules:
        idle = words.seconds(rules.policy.idle_after_minutes * 60)
        offline = words.seconds(rules.policy.offline_after_minutes * 60)
        narration.add_reason(
            f"An agent without work becomes idle {idle} after its last sign of life, and offline after"
            f" {offline}, under the rules {rules.since}.",
            rules.at,
        )
        narration.facts["policy"] = rules.facts("idle_after_minutes", "offline_after_minutes")
    if heard := await _last_heard_of(event.agent, at, past):
        since = words.duration(at.recorded_at - heard.at.recorded_at)
        narration.add_reason(f"Its last sign of life was {since} earlier: {dated(heard)}", heard.at)
        narration.facts["last_heard_of"] = {"position": heard.at.position, "at": heard.at.recorded_at}


async def registered(event: AgentRegistered, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """The action that registered the agent."""
    narration.facts |= {"agent": event.agent, "automatic": event.automatic}
    following = await past.event_at(at.position + 1) if event.automatic else None
    if following and following.at.correlation_id == at.correlation_id:
        narration.add_reason(f"Its first action: {sentence(following)}", following.at)


async def _last_heard_of(agent: str, at: Recorded, past: LogQueries) -> LoggedEvent | None:
    for limit in MAX_SCANNED_EVENTS:
        latest = await past.of_agent(agent, at.position - 1, limit)
        if heard := next((item for item in latest if _is_sign_of_life(item, agent)), None):
            return heard
    return None


def _is_sign_of_life(item: LoggedEvent, agent: str) -> bool:
    """Whether the fold of agents counts it as one; what others do to the agent is none."""
    if item.event is None:
        return False
    view = _OneAgent(agent)
    agents.apply(view, item.event, item.at)
    return view.row.last_active == item.at.recorded_at


class _OneAgent:
    """A view of one agent that has never shown a sign of life."""

    def __init__(self, agent: str) -> None:
        never = datetime.min.replace(tzinfo=UTC)
        self.row = AgentRow("", agent, "", "idle", never, None, 0, 0, never, 0)

    def rows(self, _: Table[Any, Any], /) -> Any:
        """The only table, which is this object."""
        return self

    def get(self, _: str, /) -> AgentRow:
        """The agent's row."""
        return self.row

    def put(self, _: str, row: AgentRow, /) -> None:
        """Replace the agent's row."""
        self.row = row

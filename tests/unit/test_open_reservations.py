"""The open reservations of each agent are found without a scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from projections.budgets import RESERVATIONS
from service.commands import RegisterAgent, ReleaseReservation, ReserveTokens
from service.memory.draft import Draft
from service.memory.squad import Squad
from tests.unit.stories import Story, given

if TYPE_CHECKING:
    from service.memory.state import State


def reservations(state: State, agent: str = "ann") -> set[str]:
    return {row.id for row in state.reservations_of(agent)}


def a_squad() -> tuple[Story, str, str]:
    """A squad with two reservations of ann's and one of bob's; ann's have been asked for before."""
    story = given(RegisterAgent(name="ann", role="agent"), RegisterAgent(name="bob", role="agent"))
    assert reservations(story.squad) == set()
    ids = []
    for agent in ("ann", "bob", "ann"):
        story.given(ReserveTokens(agent=agent, tokens=1, ttl_seconds=60))
        ids.append(story.id)
    return story, ids[0], ids[2]


def test_reservations_of_an_agent_are_found_from_their_start_to_their_end() -> None:
    story, first, second = a_squad()
    assert reservations(story.squad) == reservations(story.squad.copy()) == {first, second}
    loaded = Squad()
    loaded.load(RESERVATIONS, story.squad.all(RESERVATIONS))
    assert reservations(loaded) == {first, second}
    story.given(ReleaseReservation(reservation_id=first))
    assert reservations(story.squad) == {second}
    story.given(ReleaseReservation(reservation_id=second))
    assert reservations(story.squad) == set()
    assert len(reservations(story.squad, "bob")) == 1


def test_reservations_of_an_agent_are_found_in_drafts_on_top_of_each_other() -> None:
    story, first, second = a_squad()
    row = story.row(RESERVATIONS, first)
    before = Draft(story.squad)
    before.layers[RESERVATIONS].put(first, row.replaced(state="released"))
    assert reservations(before) == {second}
    after = Draft(before)
    after.layers[RESERVATIONS].put(second, row.replaced(id=second, state="settled"))
    after.layers[RESERVATIONS].put("new", row.replaced(id="new"))
    assert reservations(after) == {"new"}
    before.roll_back()
    assert reservations(before) == {first, second}

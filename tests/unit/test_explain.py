"""Every event can be explained, with its cause, in sentences that golden files pin."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from eventstore.events import TokensReleased
from service.cli.explain import lines
from service.commands import RecordUsage, ReserveTokens, SetPolicy, SettleReservation, StartOperation
from service.explain import MAX_CAUSES, MAX_EFFECTS, explain, operations
from service.explain.record import decode
from service.explain.sentences import of_event, step
from service.http.json import dumps
from service.views import explanation
from tests.support.list_log_queries import ListLogQueries
from tests.support.randomized import examples
from tests.unit import generated_histories, strategies
from tests.unit.explained_stories import QUESTIONS, SMALL_BUDGET, Question
from tests.unit.stories import START, Story, given

if TYPE_CHECKING:
    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.commands import AnyCommand
    from service.explain import Explanation

GOLDEN = Path(__file__).parent.parent / "golden" / "explanations"


def explain_at(log: list[Recorded], position: int) -> Explanation:
    found = asyncio.run(explain(ListLogQueries(log), position))
    assert found is not None
    return found


def answer(question: Question) -> Explanation:
    return explain_at(question.story.log, question.position)


@pytest.mark.parametrize("name", QUESTIONS)
def test_explanation_matches_its_golden_file(name: str) -> None:
    shown = "\n".join(lines(answer(QUESTIONS[name]()))) + "\n"
    assert shown == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_one_token_is_written_in_the_singular() -> None:
    story = given(policy=SetPolicy(daily_tokens=10)).given(ReserveTokens(agent="ada", tokens=1))
    reserved = len(story.log)
    assert "1 token was reserved for ada until " in _sentences_at(story, reserved)
    settle = SettleReservation(reservation_id=story.reply["id"], tokens_used=9)
    story.given(settle).when(ReserveTokens(agent="eve", tokens=2))
    settled = next(item.position for item in story.log if item.type == "tokens_settled")
    assert "ada used 9 of the 1 token reserved for it." in _sentences_at(story, settled)
    assert "eve was refused 2 tokens: the squad's budget for 2026-03-02 had 1 left." in _sentences_at(
        story, len(story.log)
    )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("released", "was released."), ("expired", "expired: it was not settled in time.")],
)
def test_sentence_distinguishes_released_from_expired_reservations(reason: Any, expected: str) -> None:
    released = TokensReleased(
        day=START.date(), reservation_id="r", agent="ada", tokens_reserved=1, reason=reason
    )
    assert of_event(released) == f"The reservation of 1 token for ada {expected}"


def _sentences_at(story: Story, position: int) -> str:
    found = explain_at(story.log, position)
    return " ".join([found.summary, *(item.sentence for item in (*found.reasons, *found.outcome))])


def test_every_golden_file_belongs_to_a_question() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == QUESTIONS.keys()


def test_position_without_an_event_has_no_explanation() -> None:
    log = given().log
    assert asyncio.run(explain(ListLogQueries(log), len(log) + 1)) is None


@for_all(event=strategies.events)
@examples(75)
def test_every_possible_event_has_a_sentence(event: AnyEvent) -> None:
    assert of_event(event).endswith(".")


@for_all(history=generated_histories.every_history, data=st.data())
@examples(30)
def test_every_event_of_a_history_is_explained_with_its_cause(
    history: tuple[list[AnyCommand], generated_histories.RandomHistory], data: st.DataObject
) -> None:
    log = generated_histories.story_of(*history).log
    for position in data.draw(st.lists(st.integers(1, len(log)), min_size=1, max_size=30, unique=True)):
        recorded = log[position - 1]
        found = explain_at(log, position)
        assert (found.position, found.type) == (position, recorded.type)
        assert found.origin.reasons
        if recorded.caused_by is None:
            assert (found.causes, found.causes_go_on_at) == ((), None)
        else:
            assert found.causes[0].position == recorded.caused_by
            assert len(found.causes) <= MAX_CAUSES
            assert (found.causes_go_on_at is None) or len(found.causes) == MAX_CAUSES
        named = sum(other.caused_by == position for other in log)
        assert (len(found.effects), found.effects_go_on) == (min(named, MAX_EFFECTS), named > MAX_EFFECTS)
        for effect in found.effects:
            assert log[effect.position - 1].caused_by == position
        for sentence in _sentences(found):
            assert sentence.endswith((".", ":")), sentence
        assert b"null" in dumps(explanation(found))


def _sentences(found: Explanation) -> list[str]:
    groups = (found.reasons, found.origin.reasons, found.causes, found.outcome, found.effects)
    return [found.summary, *(item.sentence for group in groups for item in group)]


def test_refused_reservation_is_explained_with_reasons() -> None:
    story = given(policy=SMALL_BUDGET)
    story.given(RecordUsage(agent="ann", tokens=900))
    story.when(ReserveTokens(agent="bob", tokens=101))
    assert answer(Question(story, len(story.log))).reasons


def test_facts_say_what_used_up_the_squads_budget() -> None:
    question = QUESTIONS["tokens_beyond_the_squads_budget"]()
    facts = answer(question).facts
    assert (facts["asked"], facts["remaining"], facts["used"], facts["reserved"]) == (280, 119, 481, 400)
    assert facts["policy"]["position"] == 1
    assert facts["largest_uses"][0] == {"position": 31, "agent": "ann", "tokens": 250}
    assert len(facts["largest_uses"]) == 10
    assert len(facts["used_by"]) == 11
    assert facts["used_by"][-1] == {"agent": None, "tokens": 39, "events": 3}
    assert sum(share["tokens"] for share in facts["used_by"]) == facts["used"]


def test_facts_say_which_claim_was_in_the_way() -> None:
    facts = answer(QUESTIONS["a_claim_in_the_way"]()).facts
    assert facts["holder"]["agent"] == "ann"
    assert facts["holder"]["position"] == 4
    assert facts["contested"] == {"emailId": "e-1"}
    assert facts["ended"]["type"] == "operation_finished"


def test_latest_possible_release_is_given_when_a_claim_has_too_many_renewals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    question = QUESTIONS["a_claim_in_the_way_that_was_free_for_a_while_later"]
    monkeypatch.setattr(operations, "MAX_SCANNED_EVENTS", 2)
    found = answer(question())
    assert found.facts["free_at"] is None
    assert (
        "the contested resources were free at the latest 90 s after the refusal"
        in found.reasons[-1].sentence
    )


def test_facts_about_an_agents_limit_leave_out_what_others_used() -> None:
    facts = answer(QUESTIONS["tokens_beyond_an_agents_limit"]()).facts
    assert {share["agent"] for share in facts["used_by"]} == {"bob"}


def test_long_chain_of_causes_says_where_it_continues() -> None:
    story = given()
    for number in range(MAX_CAUSES + 5):
        story.given(SetPolicy(daily_tokens=number))
    policies = [recorded.position for recorded in story.log if recorded.type == "policy_set"]
    found = explain_at(story.log, policies[-1])
    assert [cause.position for cause in found.causes] == policies[-2 : -2 - MAX_CAUSES : -1]
    assert found.causes_go_on_at == policies[-2 - MAX_CAUSES]


@pytest.mark.parametrize(("more", "goes_on"), [(0, False), (1, True)])
def test_long_list_of_effects_says_that_it_goes_on(more: int, *, goes_on: bool) -> None:
    story = given()
    cause = len(story.log)
    last = story.log[-1]
    story.log += [
        last._replace(position=cause + number, version=last.version + number, caused_by=cause)
        for number in range(1, MAX_EFFECTS + more + 1)
    ]
    found = explain_at(story.log, cause)
    assert [effect.position for effect in found.effects] == list(range(cause + 1, cause + 1 + MAX_EFFECTS))
    assert (found.effects_go_on, explanation(found)["effects_go_on"]) == (goes_on, goes_on)
    [*_, at_the_end] = lines(found)
    assert (at_the_end == f"  and more: every event whose caused_by is {cause}") == goes_on


def test_event_of_a_newer_version_does_not_hide_its_neighbours() -> None:
    story = _with_an_event_of_a_newer_version()
    unknown = len(story.log)
    found = explain_at(story.log, unknown)
    assert found.summary == "This version of the software does not know events of the type moon_landed."
    following = story.log[0]._replace(position=unknown + 1, caused_by=unknown)
    [cause, *_] = explain_at([*story.log, following], unknown + 1).causes
    assert cause == step(decode(story.log[-1]))


def _with_an_event_of_a_newer_version() -> Story:
    story = given().given(StartOperation(agent="ann", action="land", resources={"moon": "1"}))
    last = story.log[-1]
    story.log.append(last._replace(position=last.position + 1, type="moon_landed", data="{}", caused_by=1))
    return story

"""Histories under other rules: what would have been refused or allowed instead, and how it is reported."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from service.commands import (
    FinishOperation,
    PassTime,
    RecordUsage,
    RenewOperation,
    ReserveTokens,
    SetPolicy,
    SettleReservation,
    StartOperation,
)
from service.whatif import OtherRules, report, shown
from service.whatif.report import WHAT_IS_EXACT, Warned
from tests.unit.job_stories import claim, with_job
from tests.unit.stories import START, Story, given, moment
from tests.unit.test_whatif_properties import simulate

if TYPE_CHECKING:
    from service.whatif import Report

TODAY = START.date()
FEW_TOKENS = SetPolicy(daily_tokens=1_000)
MIDNIGHT = 12 * 3_600


def under(story: Story, after: int = 0, **rules: Any) -> Report:
    return simulate(story.log, OtherRules(**rules), after)


def sentences(found: Report) -> list[str]:
    return [difference.sentence for difference in found.differences]


def reserve(agent: str, tokens: int, ttl_seconds: float | None = None) -> ReserveTokens:
    return ReserveTokens(agent=agent, tokens=tokens, ttl_seconds=ttl_seconds)


def work(agent: str, email: str = "e-1", ttl_seconds: float | None = None) -> StartOperation:
    return StartOperation(
        agent=agent, action="answer", resources={"emailId": email}, ttl_seconds=ttl_seconds
    )


# Tokens -------------------------------------------------------------------------------------------------


class TestTokens:
    def test_reservation_that_would_have_been_refused_is_reported(self) -> None:
        story = given(policy=FEW_TOKENS).given(RecordUsage(agent="ann", tokens=250), reserve("bob", 40))
        position = len(story.log)
        found = under(story, daily_tokens=280)
        assert sentences(found) == [
            "40 tokens were reserved for bob. That would have been refused: of the day's 280 tokens, 250"
            " would have been used and 0 reserved."
        ]
        [difference] = found.differences
        assert (difference.position, difference.day, difference.agent) == (position, TODAY, "bob")
        assert (difference.what, difference.recorded, difference.instead) == (
            "reservation",
            "allowed",
            "refused",
        )
        assert (found.tokens_refused, found.rows[TODAY, "bob"].tokens_refused) == (40, 40)

    def test_tokens_of_a_reservation_that_would_have_been_refused_are_not_used(self) -> None:
        story = given(policy=FEW_TOKENS).given(reserve("bob", 600))
        story.given(SettleReservation(reservation_id=story.id, tokens_used=500), reserve("ann", 450))
        found = under(story, daily_tokens=500)
        assert (found.refused_instead, found.tokens_not_used) == (1, 500)
        assert found.caveats()[1].startswith("Tokens that were used count under any rules")

    def test_refused_tokens_that_would_have_been_reserved_count_as_used(self) -> None:
        story = given(policy=FEW_TOKENS).when(reserve("bob", 1_500))
        story.when(reserve("ann", 600), at=10_000)
        found = under(story, daily_tokens=2_000)
        assert sentences(found) == [
            "bob was refused 1,500 tokens. That would have been allowed: of the day's 2,000 tokens, 0"
            " would have been used and 0 reserved.",
            "600 tokens were reserved for ann. That would have been refused: of the day's 2,000 tokens,"
            " 1,500 would have been used and 0 reserved.",
        ]
        assert found.rows[TODAY, "bob"].tokens_allowed == 1_500
        assert "count as used in full" in found.caveats()[2]

    def test_recorded_usage_counts_under_any_rules(self) -> None:
        story = given(policy=FEW_TOKENS).given(RecordUsage(agent="ann", tokens=900))
        assert under(story, daily_tokens=0, warning_percents=[]).judged == {}

    def test_agent_limits_can_be_changed_and_removed(self) -> None:
        policy = SetPolicy(daily_tokens=1_000, agent_limits={"ann": 100, "bob": 100})
        story = given(policy=policy).when(reserve("ann", 150)).when(reserve("bob", 150))
        story.given(reserve("eve", 150))
        found = under(story, agent_limits={"ann": None, "eve": 10})
        assert {(item.agent, item.instead) for item in found.differences} == {
            ("ann", "allowed"),
            ("eve", "refused"),
        }
        assert sentences(found)[1].endswith("of its own 10 tokens, 0 would have been used and 0 reserved.")

    def test_rules_that_are_not_given_follow_the_log(self) -> None:
        story = given(policy=FEW_TOKENS).given(SetPolicy(daily_tokens=100, agent_limits={"bob": 10}), at=5)
        story.when(reserve("ann", 300)).when(reserve("bob", 300))
        found = under(story, daily_tokens=1_000)
        assert [item.agent for item in found.differences] == ["ann"]

    def test_tokens_count_on_their_own_day(self) -> None:
        story = given(policy=FEW_TOKENS).given(reserve("ann", 800))
        story.given(reserve("ann", 800), at=86_400)
        found = under(story, daily_tokens=700)
        assert set(found.rows) == {(TODAY, "ann"), (TODAY + timedelta(days=1), "ann")}


class TestRuns:
    def test_run_whose_tokens_would_have_been_refused_would_not_have_run(self) -> None:
        story = with_job(FEW_TOKENS, tokens=400).when(claim(), at=60)
        found = under(story, daily_tokens=300)
        assert found.runs_refused == 1
        assert sentences(found)[0].endswith(
            " So the tick of the job poll at 2026-03-02 12:01:00Z would not have run."
        )

    def test_run_that_was_skipped_for_the_budget_would_have_run(self) -> None:
        story = with_job(FEW_TOKENS, tokens=400).given(RecordUsage(agent="bob", tokens=700), at=30)
        found = under(story.when(claim(), at=60), daily_tokens=2_000)
        assert found.runs_allowed == 1
        assert sentences(found)[0].endswith(
            " So the tick of the job poll at 2026-03-02 12:01:00Z would have run."
        )

    def test_run_whose_claim_would_have_been_refused_would_not_have_run(self) -> None:
        story = with_job(resources={"emailId": "e-1"}).given(work("bob"), at=20)
        found = under(story.when(claim(), at=60), conflict_window_seconds=55)
        assert found.judged == {("claim", "refused"): 1}
        assert found.runs_refused == 1
        assert sentences(found)[0].endswith(
            " So the tick of the job poll at 2026-03-02 12:01:00Z would not have run."
        )

    def test_run_that_was_skipped_for_a_claim_would_have_run(self) -> None:
        story = with_job(resources={"emailId": "e-1"}).given(work("bob"), at=40)
        found = under(story.when(claim(), at=60), conflict_window_seconds=15)
        assert found.judged == {("claim", "allowed"): 1}
        assert found.runs_allowed == 1
        assert sentences(found)[0].endswith(
            " So the tick of the job poll at 2026-03-02 12:01:00Z would have run."
        )


class TestWarnings:
    def test_warnings_would_have_come_at_a_different_time_or_not_at_all(self) -> None:
        story = given(policy=FEW_TOKENS)
        story.given(RecordUsage(agent="ann", tokens=500), at=10)
        story.given(RecordUsage(agent="ann", tokens=300), at=20)
        found = under(story, daily_tokens=1_600)
        assert found.warnings == [
            Warned(TODAY, 50, moment(10), moment(20)),
            Warned(TODAY, 75, moment(20), None),
        ]
        assert found.summary() == (
            "Every request would have been judged the same; 2 warnings would have come at a different time,"
            " or not at all."
        )

    def test_warnings_would_have_come_at_other_percentages(self) -> None:
        story = given(policy=FEW_TOKENS).given(RecordUsage(agent="ann", tokens=600), at=10)
        found = under(story, warning_percents=[60, 20])
        assert found.warnings == [
            Warned(TODAY, 20, None, moment(10)),
            Warned(TODAY, 50, moment(10), None),
            Warned(TODAY, 60, None, moment(10)),
        ]

    def test_closed_day_has_no_warnings_under_any_rules(self) -> None:
        story = given(policy=FEW_TOKENS).given(reserve("ann", 600, 3_600), at=MIDNIGHT - 60)
        reservation = story.id
        # The day stays in memory as long as tokens are reserved in it.
        story.given(reserve("bob", 10, 3_600), at=MIDNIGHT - 50)
        story.given(SettleReservation(reservation_id=reservation, tokens_used=600), at=MIDNIGHT + 60)
        assert "budget_threshold_crossed" not in {recorded.type for recorded in story.log}
        assert under(story, daily_tokens=700).warnings == []


# Claims -------------------------------------------------------------------------------------------------


class TestClaims:
    def test_claim_that_would_have_been_refused_is_reported(self) -> None:
        story = given().given(work("ann")).given(work("bob"), at=31)
        found = under(story, conflict_window_seconds=45)
        assert sentences(found) == [
            "bob claimed emailId e-1 for “answer”. That would have been refused: ann would have had a claim"
            " on emailId e-1 for “answer”."
        ]
        assert found.judged == {("claim", "refused"): 1}

    def test_refused_claim_that_would_have_been_made_blocks_for_one_window(self) -> None:
        story = given().given(work("ann"))
        story.when(work("bob"), at=20).given(work("eve"), at=35).given(work("eve", "e-2"), at=36)
        found = under(story, conflict_window_seconds=16)
        assert sentences(found) == [
            "bob was blocked from “answer”: ann had claimed emailId e-1 for “answer”. No claim would have"
            " blocked it.",
            "eve claimed emailId e-1 for “answer”. That would have been refused: bob would have had a claim"
            " on emailId e-1 for “answer”.",
        ]
        assert "one conflict window" in found.caveats()[1]

    def test_heartbeats_and_end_of_a_claim_that_would_have_been_refused_are_not_judged(self) -> None:
        story = given().given(work("ann")).given(work("bob"), at=31)
        story.given(RenewOperation(operation_id=story.id), at=40)
        story.given(FinishOperation(operation_id=story.id, outcome="succeeded"), at=50)
        found = under(story, conflict_window_seconds=45)
        assert found.judged == {("claim", "refused"): 1}

    def test_claim_that_would_have_expired_is_reported_once(self) -> None:
        story = given().given(work("ann"))
        operation = story.id
        story.given(RenewOperation(operation_id=operation), at=20)
        story.given(RenewOperation(operation_id=operation), at=40)
        story.given(FinishOperation(operation_id=operation, outcome="succeeded"), at=50)
        found = under(story, operation_timeout_seconds=15)
        assert sentences(found) == [
            "ann renewed its operation. That would have been refused: the operation would have expired at"
            " 2026-03-02 12:00:15Z."
        ]

    def test_claim_that_would_have_expired_could_not_have_been_finished(self) -> None:
        story = given().given(work("ann"))
        story.given(FinishOperation(operation_id=story.id, outcome="succeeded"), at=50)
        found = under(story, operation_timeout_seconds=15)
        assert found.judged == {("finish", "refused"): 1}

    def test_claim_keeps_its_own_time_to_live(self) -> None:
        story = given().given(work("ann", ttl_seconds=90))
        story.given(FinishOperation(operation_id=story.id, outcome="succeeded"), at=80)
        assert not under(story, operation_timeout_seconds=15).is_different

    def test_refused_heartbeat_would_have_been_allowed_without_the_other_claim(self) -> None:
        story = given().given(work("ann"))
        operation = story.id
        story.given(work("bob"), at=31).when(RenewOperation(operation_id=operation), at=40)
        found = under(story, conflict_window_seconds=45)
        assert [(item.what, item.instead) for item in found.differences] == [
            ("claim", "refused"),
            ("heartbeat", "allowed"),
        ]
        assert sentences(found)[1].endswith("It would have kept its own claim.")

    def test_heartbeat_would_have_been_refused_because_of_the_other_claim(self) -> None:
        story = given().given(work("ann"))
        operation = story.id
        story.when(work("bob"), at=20).given(RenewOperation(operation_id=operation), at=25)
        found = under(story, conflict_window_seconds=10)
        assert [(item.what, item.instead) for item in found.differences] == [
            ("claim", "allowed"),
            ("heartbeat", "refused"),
        ]

    def test_claim_that_would_have_lived_longer_does_not_block_after_its_window(self) -> None:
        story = given().given(work("ann")).when(PassTime(), at=61).given(work("bob"), at=62)
        assert not under(story, operation_timeout_seconds=600).is_different

    def test_operations_that_would_not_have_expired_are_counted_in_a_caveat(self) -> None:
        story = given().given(work("ann"))
        story.when(RenewOperation(operation_id=story.id), at=61)
        assert story.refusal.code == "operation_expired"
        assert under(story).caveats() == []
        [caveat] = under(story, operation_timeout_seconds=600).caveats()
        assert caveat.startswith("1 operation that expired would still have been active.")
        assert under(story, operation_timeout_seconds=60).caveats() == []


# The range, and the report ------------------------------------------------------------------------------


def test_other_rules_apply_only_after_the_position() -> None:
    story = given(policy=FEW_TOKENS).given(reserve("ann", 400))
    before = len(story.log)
    story.given(reserve("bob", 400))
    found = under(story, before, daily_tokens=300)
    assert [item.agent for item in found.differences] == ["bob"]
    assert (found.after, found.upto, found.requests) == (before, len(story.log), 1)


def test_rules_that_apply_from_a_position_warn_like_a_change_of_policy() -> None:
    story = given(policy=FEW_TOKENS).given(RecordUsage(agent="ann", tokens=400), at=10)
    before = len(story.log)
    story.given(RecordUsage(agent="bob", tokens=1), at=20)
    found = under(story, before, daily_tokens=500)
    assert found.warnings == [Warned(TODAY, 50, None, moment(20)), Warned(TODAY, 75, None, moment(20))]


def test_empty_log_has_no_differences() -> None:
    found = simulate([], OtherRules(daily_tokens=5))
    assert found.summary() == "Nothing would have been different, in 0 requests."
    assert found.caveats() == []


def test_report_of_differences_says_that_agents_would_have_acted_differently() -> None:
    story = given(policy=FEW_TOKENS).given(reserve("ann", 400))
    found = under(story, daily_tokens=300)
    assert found.caveats()[0] == WHAT_IS_EXACT
    assert found.summary() == (
        "Of 1 request, 1 would have been refused instead of allowed, and 0 allowed instead of refused."
    )


def test_only_the_first_ten_differences_are_listed_but_all_are_counted() -> None:
    story = given(policy=FEW_TOKENS)
    for _ in range(25):
        story.given(reserve("ann", 10, ttl_seconds=1))
    found = under(story, daily_tokens=5)
    assert len(found.differences) == 10
    assert (found.refused_instead, found.tokens_refused) == (25, 250)


def test_rows_beyond_the_maximum_are_counted_but_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_ROWS", 2)
    story = given(policy=FEW_TOKENS).given(*(reserve(f"agent-{number}", 10) for number in range(5)))
    found = under(story, daily_tokens=5)
    assert (len(found.rows), found.rows_left_out, found.refused_instead) == (2, 3, 5)
    assert len(shown(found)["days"]) == 2


def test_rows_of_a_day_are_listed_by_agent() -> None:
    story = given(policy=FEW_TOKENS).given(reserve("bob", 10), reserve("ann", 10))
    found = shown(under(story, daily_tokens=5))
    assert [(day["day"], day["agent"]) for day in found["days"]] == [
        (date(2026, 3, 2), "ann"),
        (date(2026, 3, 2), "bob"),
    ]


@pytest.mark.parametrize(
    "rules",
    [
        {"daily_tokens": -1},
        {"agent_limits": {"ann": -1}},
        {"agent_limits": {"": 1}},
        {"conflict_window_seconds": 0},
        {"operation_timeout_seconds": float("inf")},
        {"warning_percents": [0]},
        {"warning_percents": [101]},
        {"since": START, "until": START},
        {"since": "yesterday"},
        {"dayly_tokens": 5},
    ],
)
def test_invalid_rules_are_rejected(rules: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OtherRules(**rules)

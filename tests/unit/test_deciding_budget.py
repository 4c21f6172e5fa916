"""Decisions about the token budget: reservations, usage, warnings, the policy, and the budget day."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import convert, structs

from eventstore import codec
from eventstore.events import (
    BudgetDayReset,
    BudgetThresholdCrossed,
    DenialReason,
    PolicySet,
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from projections.budgets import BUDGET_DAYS, BUDGETS, RESERVATIONS
from service.commands import (
    Heartbeat,
    PassTime,
    RecordUsage,
    RegisterAgent,
    ReleaseReservation,
    ReserveTokens,
    SetBudget,
    SetPolicy,
    SettleReservation,
)
from service.decide.allowance import MIN_RETRY_SECONDS, allowance, remaining
from service.requests import CommandFailed
from tests.unit.stories import FRESH, UNKNOWN_ID, Story, given, moment

if TYPE_CHECKING:
    from projections.budgets import BudgetDayRow

TODAY, TOMORROW = date(2026, 3, 2), date(2026, 3, 3)
MIDNIGHT = 12 * 3600
"""The first midnight of a story that begins at noon."""


def a_squad(total: int = 1000, **policy: Any) -> Story:
    """A squad with a budget and two active agents."""
    story = given(policy=SetPolicy(daily_tokens=total, **policy))
    for name in ("ann", "bob"):
        story.given(RegisterAgent(name=name, role="agent"), Heartbeat(agent=name))
    return story


def reserve(tokens: int, agent: str = "ann", ttl: float | None = None) -> ReserveTokens:
    return ReserveTokens(agent=agent, tokens=tokens, ttl_seconds=ttl)


def use(tokens: int, agent: str = "ann") -> RecordUsage:
    return RecordUsage(agent=agent, tokens=tokens)


def settle(reservation: str, tokens: int) -> SettleReservation:
    return SettleReservation(reservation_id=reservation, tokens_used=tokens)


def reserved(tokens: int, agent: str = "ann", *, until: float = 300) -> TokensReserved:
    return TokensReserved(
        day=TODAY, reservation_id=FRESH, agent=agent, tokens=tokens, expires_at=moment(until)
    )


def settled(reservation: str, tokens: int, used: int, day: date = TODAY) -> TokensSettled:
    return TokensSettled(
        day=day, reservation_id=reservation, agent="ann", tokens_reserved=tokens, tokens_used=used
    )


def released(reservation: str, tokens: int, reason: Any = "released", day: date = TODAY) -> TokensReleased:
    return TokensReleased(
        day=day, reservation_id=reservation, agent="ann", tokens_reserved=tokens, reason=reason
    )


def used(tokens: int, agent: str = "ann", day: date = TODAY) -> TokensUsed:
    return TokensUsed(day=day, agent=agent, tokens=tokens)


def denied(tokens: int, left: int, reason: DenialReason = "budget_exhausted") -> TokensDenied:
    return TokensDenied(day=TODAY, agent="ann", tokens=tokens, reason=reason, remaining=left)


def crossed(percent: int, used_in_total: int, total: int = 1000) -> BudgetThresholdCrossed:
    level = {50: "info", 75: "warning", 90: "critical"}[percent]
    return convert(
        {"day": TODAY, "percent": percent, "level": level, "used": used_in_total, "total": total},
        BudgetThresholdCrossed,
    )


def day(story: Story, name: date = TODAY) -> BudgetDayRow:
    return story.row(BUDGET_DAYS, name)


class TestReserving:
    def test_sets_tokens_aside(self) -> None:
        story = a_squad().when(reserve(400))
        story.then(reserved(400)).then_replied(expires_at=moment(300), remaining=600)
        assert (day(story).used, day(story).reserved, remaining(day(story))) == (0, 400, 600)
        assert story.row(BUDGETS, (TODAY, "ann")).reserved == 400

    def test_lasts_as_long_as_requested(self) -> None:
        a_squad().when(reserve(1, ttl=7)).then(reserved(1, until=7))

    def test_may_take_the_very_last_token(self) -> None:
        a_squad(total=1000).when(reserve(1000)).then(reserved(1000)).then_replied(remaining=0)

    @pytest.mark.parametrize(
        ("limit", "of_others", "left"), [(200, 0, 200), (200, 900, 100), (2000, 0, 1000)]
    )
    def test_every_reply_states_what_the_agent_may_still_use(
        self, limit: int, of_others: int, left: int
    ) -> None:
        story = a_squad(agent_limits={"ann": limit}).given(use(of_others, "bob"))
        story.when(reserve(60)).then_replied(remaining=left - 60)
        reservation = story.id
        assert story.when(reserve(9999)).refusal.extra["remaining"] == left - 60
        story.when(use(10)).then_replied(remaining=left - 70)
        story.when(settle(reservation, 20)).then_replied(remaining=left - 30)
        story.when(reserve(40)).then_replied(remaining=left - 70)
        story.when(ReleaseReservation(reservation_id=story.id)).then_replied(remaining=left - 30)

    def test_is_refused_beyond_what_remains(self) -> None:
        story = a_squad().given(reserve(100, "bob"), use(800, "bob"))
        story.when(reserve(201)).then_refused("budget_exhausted", denied(201, 100))
        assert story.refusal.extra == {"remaining": 100, "resets_at": datetime(2026, 3, 3, tzinfo=UTC)}
        assert story.refusal.retry_after_seconds == MIDNIGHT
        assert "100 remain" in story.refusal.detail

    @pytest.mark.parametrize(
        ("ttl_seconds", "retry_after_seconds"),
        [(300.0, 300), (5.0, MIN_RETRY_SECONDS)],
        ids=["when it expires", "not at every moment at which one expires"],
    )
    def test_can_be_tried_again_when_a_reservation_that_is_in_the_way_expires(
        self, ttl_seconds: float, retry_after_seconds: int
    ) -> None:
        held = ReserveTokens(agent="bob", tokens=600, ttl_seconds=ttl_seconds)
        story = a_squad().given(held, use(300, "bob"))
        story.when(reserve(101)).then_refused("budget_exhausted", denied(101, 100))
        assert story.refusal.retry_after_seconds == retry_after_seconds

    @pytest.mark.parametrize(("limit", "retry_after_seconds"), [(400, 300), (350, MIDNIGHT)])
    def test_can_be_tried_again_before_the_day_ends_only_if_the_agent_may_use_that_much(
        self, limit: int, retry_after_seconds: int
    ) -> None:
        story = a_squad(agent_limits={"ann": limit}).given(reserve(300), use(50))
        assert story.when(reserve(350)).refusal.code == "agent_limit_reached"
        assert story.refusal.retry_after_seconds == retry_after_seconds

    @pytest.mark.parametrize(
        ("tokens", "limits", "detail"),
        [
            (1001, {}, "remain; a whole day allows no more than 1000, so this needs another policy"),
            (401, {"ann": 400}, "left; a whole day allows no more than 400, so this needs another policy"),
            (
                1001,
                {"ann": 2000},
                "remain; a whole day allows no more than 1000, so this needs another policy",
            ),
        ],
    )
    def test_says_if_no_day_has_so_many(self, tokens: int, limits: dict[str, int], detail: str) -> None:
        story = a_squad(agent_limits=limits).when(reserve(tokens))
        assert story.refusal.retry_after_seconds == MIDNIGHT
        assert story.refusal.detail.endswith(detail)
        story.given(use(1)).when(reserve(tokens - 1))
        assert story.refusal.retry_after_seconds == MIDNIGHT
        assert "whole day" not in story.refusal.detail

    @pytest.mark.parametrize("of_squad", [1000, 400])
    def test_can_be_tried_again_when_one_of_the_agents_own_expires_if_its_limit_refuses(
        self, of_squad: int
    ) -> None:
        story = a_squad(of_squad, agent_limits={"ann": 300})
        story.given(reserve(90, "bob", ttl=40), reserve(300, ttl=600), reserve(5, "bob", ttl=50))
        assert story.when(reserve(300)).refusal.retry_after_seconds == 600
        story.when(reserve(300), at=599)
        assert story.refusal.retry_after_seconds == MIN_RETRY_SECONDS
        story.when(reserve(300), at=600)
        assert story.outcome.refusal is None

    def test_refusal_is_caused_by_the_last_change_of_the_day(self) -> None:
        story = a_squad().given(use(1000, "bob"))
        position = day(story).position
        story.when(reserve(1))
        assert story.caused_by(TokensDenied) == position

    def test_is_refused_beyond_the_agents_own_limit(self) -> None:
        story = a_squad(agent_limits={"ann": 200}).given(use(50), reserve(100))
        story.when(reserve(51)).then_refused("agent_limit_reached", denied(51, 50, "agent_limit_reached"))
        assert "'ann' may use 200 tokens today and has 50 left" in story.refusal.detail
        story.when(reserve(50)).then(reserved(50))

    def test_agents_limit_still_holds_after_the_last_settlement_of_yesterday(self) -> None:
        story = a_squad(agent_limits={"ann": 100}).given(reserve(400, "bob", ttl=600), at=MIDNIGHT - 60)
        reservation = story.id
        story.given(use(60), at=MIDNIGHT + 1).given(settle(reservation, 400))
        assert story.squad.rows(BUDGET_DAYS).get(TODAY) is None
        story.when(reserve(41))
        assert story.refusal.code == "agent_limit_reached"
        assert story.row(BUDGETS, (TOMORROW, "ann")).used == 60

    def test_is_not_bound_by_the_limit_of_another_agent(self) -> None:
        a_squad(agent_limits={"bob": 200}).when(reserve(1000)).then(reserved(1000))

    def test_refusal_is_caused_by_the_policy_when_the_agent_used_nothing(self) -> None:
        story = a_squad(agent_limits={"ann": 0})
        story.when(reserve(1)).then_refused("agent_limit_reached", denied(1, 0, "agent_limit_reached"))
        assert story.caused_by(TokensDenied) == story.position_of(PolicySet)

    def test_refusal_names_the_budget_when_both_are_exhausted(self) -> None:
        story = a_squad(total=100, agent_limits={"ann": 100}).given(use(100))
        story.when(reserve(1)).then_refused("budget_exhausted", denied(1, 0))

    def test_sees_earlier_reservations_of_the_same_batch(self) -> None:
        story = a_squad(total=1000).when(*[reserve(300)] * 5)
        story.then_recorded(reserved(300), reserved(300), reserved(300), denied(300, 100), denied(300, 100))

    def test_is_refused_when_the_budget_is_overspent(self) -> None:
        story = a_squad().given(use(1500, "bob"))
        story.when(reserve(1)).then_refused("budget_exhausted", denied(1, -500))
        assert "0 remain" in story.refusal.detail

    def test_is_refused_when_the_agents_limit_is_overspent(self) -> None:
        story = a_squad(agent_limits={"ann": 200}).given(use(250))
        story.when(reserve(1)).then_refused("agent_limit_reached", denied(1, -50, "agent_limit_reached"))
        assert "has 0 left" in story.refusal.detail

    def test_fails_with_a_reason_before_the_first_policy(self) -> None:
        [failed] = Story().when(reserve(1)).outcomes
        assert isinstance(failed, CommandFailed)
        assert str(failed) == "no budget day has begun"

    def test_crosses_no_threshold(self) -> None:
        """Only used tokens count towards a warning."""
        a_squad().when(reserve(1000)).then(reserved(1000))


class TestSettling:
    def test_turns_reserved_tokens_into_used_ones(self) -> None:
        story = a_squad().given(reserve(400))
        reservation = story.id
        story.when(settle(reservation, 250), at=20)
        story.then(settled(reservation, 400, 250)).then_replied(tokens_used=250, remaining=750)
        assert story.caused_by(TokensSettled) == story.position_of(TokensReserved)
        assert (day(story).used, day(story).reserved) == (250, 0)
        assert story.squad.rows(RESERVATIONS).get(reservation) is None

    def test_may_report_that_nothing_was_used(self) -> None:
        story = a_squad().given(reserve(400))
        reservation = story.id
        story.when(settle(reservation, 0)).then(settled(reservation, 400, 0)).then_replied(remaining=1000)

    def test_may_report_more_than_was_reserved(self) -> None:
        story = a_squad().given(reserve(400), reserve(600, "bob"))
        reservation = next(row.id for row in story.squad.all(RESERVATIONS) if row.agent == "ann")
        story.when(settle(reservation, 450)).then(settled(reservation, 400, 450)).then_replied(
            remaining=-50
        )

    def test_may_cross_a_threshold(self) -> None:
        story = a_squad().given(use(400), reserve(100))
        reservation = story.id
        story.when(settle(reservation, 100)).then(settled(reservation, 100, 100), crossed(50, 500))
        assert story.caused_by(BudgetThresholdCrossed) == story.position_of(TokensSettled)

    def test_twice_is_refused(self) -> None:
        story = a_squad().given(reserve(400))
        command = settle(story.id, 10)
        story.given(command).when(command).then_refused("reservation_ended")
        assert story.refusal.extra == {"state": "settled", "tokens_used": 10}
        assert story.refusal.detail.endswith("was already settled")

    def test_twice_in_one_batch_counts_once(self) -> None:
        story = a_squad().given(reserve(400))
        command = settle(story.id, 10)
        story.when(command, command)
        assert story.refusal.code == "reservation_ended"
        assert (day(story).used, day(story).reserved) == (10, 0)

    def test_after_the_release_is_refused(self) -> None:
        story = a_squad().given(reserve(400))
        command = settle(story.id, 10)
        story.given(ReleaseReservation(reservation_id=story.id)).when(command)
        story.then_refused("reservation_ended")
        assert story.refusal.extra == {"state": "released", "tokens_used": None}
        assert story.refusal.detail.endswith("record what was spent with POST /api/v1/budget/usage")

    def test_is_refused_for_an_unknown_reservation(self) -> None:
        a_squad().when(settle(UNKNOWN_ID, 10)).then_refused("reservation_not_found")

    def test_yesterdays_reservation_counts_towards_yesterday(self) -> None:
        story = a_squad().given(reserve(400, ttl=600), at=MIDNIGHT - 60)
        reservation = story.id
        story.given(use(30, "bob"), at=MIDNIGHT + 1)
        story.when(settle(reservation, 350), at=MIDNIGHT + 2)
        story.then(settled(reservation, 400, 350)).then_replied(remaining=970)
        assert (day(story, TOMORROW).used, day(story, TOMORROW).reserved) == (30, 0)
        assert story.squad.rows(BUDGET_DAYS).get(TODAY) is None
        assert story.squad.rows(BUDGETS).get((TODAY, "ann")) is None


class TestReleasing:
    def test_returns_all_tokens(self) -> None:
        story = a_squad().given(reserve(400))
        reservation = story.id
        story.when(ReleaseReservation(reservation_id=reservation))
        story.then(released(reservation, 400)).then_replied(remaining=1000)
        assert (day(story).used, day(story).reserved) == (0, 0)
        assert story.caused_by(TokensReleased) == story.position_of(TokensReserved)

    def test_twice_is_refused(self) -> None:
        story = a_squad().given(reserve(400))
        command = ReleaseReservation(reservation_id=story.id)
        story.given(command).when(command).then_refused("reservation_ended")

    def test_after_settling_is_refused(self) -> None:
        story = a_squad().given(reserve(400))
        command = ReleaseReservation(reservation_id=story.id)
        story.given(settle(story.id, 1)).when(command).then_refused("reservation_ended")

    def test_yesterdays_reservation_leaves_today_unchanged(self) -> None:
        story = a_squad().given(reserve(400, ttl=600), at=MIDNIGHT - 60)
        reservation = story.id
        story.when(ReleaseReservation(reservation_id=reservation), at=MIDNIGHT + 1)
        story.then(released(reservation, 400)).then_replied(remaining=1000)


class TestExpiry:
    def test_releases_a_reservation_that_was_not_settled(self) -> None:
        story = a_squad().given(reserve(400))
        reservation = story.id
        story.when(PassTime(), at=299.9).then_clock_recorded()
        story.when(PassTime(), at=300.2).then_clock_recorded(released(reservation, 400, "expired"))
        assert story.caused_by(TokensReleased) == story.position_of(TokensReserved)
        assert (day(story).reserved, remaining(day(story))) == (0, 1000)

    def test_releases_only_expired_reservations(self) -> None:
        story = a_squad().given(reserve(400, ttl=60))
        reservation = story.id
        story.given(reserve(100, ttl=90))
        story.when(PassTime(), at=60).then_clock_recorded(released(reservation, 400, "expired"))
        assert day(story).reserved == 100

    def test_takes_effect_before_it_is_recorded(self) -> None:
        story = a_squad().given(reserve(400))
        reservation = story.id
        story.given(PassTime(), at=299.9)
        story.when(settle(reservation, 1), at=300).then_clock_recorded().then_refused("reservation_expired")

    def test_settling_is_refused_afterwards_with_advice(self) -> None:
        story = a_squad().given(reserve(400))
        reservation = story.id
        story.given(PassTime(), at=300).when(settle(reservation, 1), at=301)
        story.then_refused("reservation_expired")
        assert story.refusal.extra == {"expired_at": moment(300)}
        assert "/api/v1/budget/usage" in story.refusal.detail

    def test_releasing_is_refused_afterwards(self) -> None:
        story = a_squad().given(reserve(400))
        command = ReleaseReservation(reservation_id=story.id)
        story.when(command, at=301).then_refused("reservation_expired")

    def test_frees_tokens_for_the_same_batch(self) -> None:
        story = a_squad().given(reserve(1000))
        reservation = story.id
        story.when(reserve(1000), at=300)
        story.then_clock_recorded(released(reservation, 1000, "expired")).then(reserved(1000, until=600))

    def test_yesterdays_reservation_leaves_today_unchanged(self) -> None:
        story = a_squad().given(reserve(400, ttl=600), at=MIDNIGHT - 60)
        reservation = story.id
        story.given(use(1), at=MIDNIGHT + 1)
        story.when(use(1), at=MIDNIGHT + 540).then_clock_recorded(released(reservation, 400, "expired"))
        assert day(story, TOMORROW).reserved == 0


class TestUsage:
    def test_is_recorded(self) -> None:
        story = a_squad().when(use(30)).then(used(30)).then_replied(tokens=30, remaining=970)
        assert story.row(BUDGETS, (TODAY, "ann")).used == 30

    def test_keeps_all_details(self) -> None:
        command = RecordUsage(
            agent="ann",
            input_tokens=20,
            output_tokens=5,
            model="a-model",
            task_id="t-1",
            operation_id=UNKNOWN_ID,
        )
        a_squad().when(command).then(
            TokensUsed(
                day=TODAY,
                agent="ann",
                tokens=25,
                input_tokens=20,
                output_tokens=5,
                model="a-model",
                task_id="t-1",
                operation_id=UNKNOWN_ID,
            )
        )

    def test_is_recorded_even_beyond_the_budget_and_the_agents_limit(self) -> None:
        story = a_squad(agent_limits={"ann": 10}).when(use(1500))
        story.then(used(1500), crossed(50, 1500), crossed(75, 1500), crossed(90, 1500))
        story.then_replied(remaining=-1490)

    def test_may_use_tokens_that_others_have_reserved(self) -> None:
        story = a_squad().given(reserve(600, "bob")).when(use(700))
        assert remaining(day(story)) == -300


class TestWarnings:
    def test_come_at_each_threshold(self) -> None:
        story = a_squad()
        story.when(use(499)).then(used(499))
        story.when(use(1)).then(used(1), crossed(50, 500))
        story.when(use(250)).then(used(250), crossed(75, 750))
        story.when(use(150)).then(used(150), crossed(90, 900))
        story.when(use(100)).then(used(100))

    def test_come_for_all_thresholds_that_one_usage_crosses(self) -> None:
        story = a_squad().when(use(900))
        story.then(used(900), crossed(50, 900), crossed(75, 900), crossed(90, 900))
        assert story.caused_by(BudgetThresholdCrossed) == story.position_of(TokensUsed)

    def test_come_in_ascending_order_whatever_the_order_in_the_policy(self) -> None:
        """As in an imported log."""
        story = a_squad()
        policy = codec.decode(next(item for item in story.log if item.type == PolicySet.type))
        assert isinstance(policy, PolicySet)
        story.given(structs.replace(policy, warning_percents=[90, 50, 75])).when(use(900))
        story.then(used(900), crossed(50, 900), crossed(75, 900), crossed(90, 900))

    def test_come_once_a_day(self) -> None:
        a_squad().given(use(600)).when(use(100)).then(used(100))

    def test_come_once_per_batch(self) -> None:
        story = a_squad().when(use(500), use(1))
        story.then(used(500), crossed(50, 500), used(1))

    def test_do_not_come_again_after_the_budget_was_raised(self) -> None:
        story = a_squad().given(use(600), SetBudget(daily_tokens=10_000))
        story.when(use(4400)).then(used(4400))
        story.when(use(2500)).then(used(2500), crossed(75, 7500, 10_000))

    def test_come_when_the_budget_is_lowered_far_enough(self) -> None:
        story = a_squad().given(use(400))
        story.when(SetBudget(daily_tokens=500))
        assert story.recorded[0].type == "policy_set"
        assert story.events[1:] == [crossed(50, 400, 500), crossed(75, 400, 500)]
        assert story.caused_by(BudgetThresholdCrossed) == story.position_of(PolicySet)

    def test_come_again_the_next_day(self) -> None:
        story = a_squad().given(use(600)).when(use(500), at=MIDNIGHT)
        assert [recorded.type for recorded in story.recorded][-1] == "budget_threshold_crossed"

    def test_come_with_the_first_token_when_the_budget_is_zero(self) -> None:
        story = a_squad(total=0).when(use(0)).then(used(0))
        story.when(use(1)).then(used(1), crossed(50, 1, 0), crossed(75, 1, 0), crossed(90, 1, 0))


class TestSettingTheBudget:
    def policy_set(self, story: Story) -> PolicySet:
        event = story.events[0]
        assert isinstance(event, PolicySet)
        return event

    def test_takes_effect_today(self) -> None:
        story = a_squad().given(use(100)).when(SetBudget(daily_tokens=5000))
        assert (self.policy_set(story).daily_tokens, self.policy_set(story).day) == (5000, TODAY)
        assert (day(story).total, remaining(day(story))) == (5000, 4900)
        story.then_replied(daily_tokens=5000, agent_limits={})

    def test_replaces_all_limits(self) -> None:
        story = a_squad(agent_limits={"ann": 10, "bob": 10})
        story.when(SetBudget(agent_limits={"ann": 20})).then_replied(
            daily_tokens=1000, agent_limits={"ann": 20}
        )
        assert story.squad.policy.agent_limits == {"ann": 20}

    def test_same_values_change_nothing(self) -> None:
        story = a_squad(agent_limits={"ann": 10})
        story.when(SetBudget(daily_tokens=1000, agent_limits={"ann": 10})).then_nothing()
        story.then_replied(position=story.position_of(PolicySet))

    @pytest.mark.parametrize(
        "command",
        [
            SetBudget(daily_tokens=None, agent_limits={"ann": 10}),
            SetBudget(daily_tokens=1000, agent_limits=None),
            SetPolicy(daily_tokens=1000, timezone=None),
        ],
    )
    def test_leaves_fields_unchanged_that_are_null(self, command: SetBudget | SetPolicy) -> None:
        a_squad(agent_limits={"ann": 10}).when(command).then_nothing()

    def test_budget_below_the_usage_refuses_further_reservations(self) -> None:
        story = a_squad().given(use(400), SetBudget(daily_tokens=300))
        story.when(reserve(1)).then_refused("budget_exhausted", denied(1, -100))

    def test_records_the_whole_policy(self) -> None:
        story = a_squad(timezone="Europe/Berlin", reset_hour=6).when(SetBudget(daily_tokens=7))
        assert self.policy_set(story) == PolicySet(
            daily_tokens=7,
            agent_limits={},
            warning_percents=[50, 75, 90],
            reset_hour=6,
            timezone="Europe/Berlin",
            conflict_window_seconds=30.0,
            operation_timeout_seconds=60.0,
            idle_after_minutes=10.0,
            offline_after_minutes=60.0,
            day=TODAY,
        )


class TestAllowance:
    @pytest.mark.parametrize(
        ("tokens", "limit", "expected"),
        [
            (700, None, (None, 700)),
            (701, None, ("budget_exhausted", 700)),
            (400, 500, (None, 400)),
            (401, 500, ("agent_limit_reached", 400)),
            (701, 500, ("budget_exhausted", 400)),
            (700, 5000, (None, 700)),
        ],
    )
    def test_is_the_lesser_of_the_budget_and_the_limit(
        self, tokens: int, limit: int | None, expected: tuple[DenialReason | None, int]
    ) -> None:
        limits = {} if limit is None else {"ann": limit}
        story = a_squad(agent_limits=limits).given(use(100), reserve(200, "bob"))
        assert allowance(story.squad, day(story), "ann", tokens) == expected


class TestDayReset:
    def reset(self, story: Story) -> BudgetDayReset:
        return next(event for event in story.clock_events if isinstance(event, BudgetDayReset))

    def test_closes_the_previous_day_and_records_its_usage(self) -> None:
        story = a_squad().given(use(300), use(40, "bob"), reserve(100, "bob", ttl=86_400))
        story.when(PassTime(), at=MIDNIGHT)
        assert self.reset(story) == BudgetDayReset(
            day=TOMORROW,
            starts_at=datetime(2026, 3, 3, tzinfo=UTC),
            ends_at=datetime(2026, 3, 4, tzinfo=UTC),
            total=1000,
            previous_day=TODAY,
            previous_used=340,
            previous_total=1000,
            previous_agents={"ann": 300, "bob": 40},
        )
        assert day(story).closed_at == moment(MIDNIGHT)
        assert (day(story, TOMORROW).used, day(story, TOMORROW).reserved) == (0, 0)

    def test_precedes_the_first_command_of_the_day(self) -> None:
        story = a_squad().given(use(0), at=MIDNIGHT - 0.01)
        story.when(use(5), at=MIDNIGHT).then(used(5, day=TOMORROW))
        assert self.reset(story).day == TOMORROW

    def test_happens_once(self) -> None:
        a_squad().given(PassTime(), at=MIDNIGHT).when(PassTime(), at=MIDNIGHT + 1).then_clock_recorded()

    def test_begins_the_current_day_after_days_without_activity(self) -> None:
        story = a_squad().when(PassTime(), at=MIDNIGHT + 5 * 86_400)
        assert (self.reset(story).previous_day, self.reset(story).day) == (TODAY, date(2026, 3, 8))

    def test_begins_with_the_policys_total(self) -> None:
        story = a_squad().given(SetBudget(daily_tokens=77)).when(PassTime(), at=MIDNIGHT)
        assert day(story, TOMORROW).total == 77

    def test_drops_a_past_day_without_reservations_from_memory(self) -> None:
        story = a_squad().given(use(300)).when(PassTime(), at=MIDNIGHT)
        assert [row.day for row in story.squad.all(BUDGET_DAYS)] == [TOMORROW]
        assert list(story.squad.all(BUDGETS)) == []

    def test_makes_the_whole_budget_available_again(self) -> None:
        story = a_squad().given(use(1000)).when(reserve(1000), at=MIDNIGHT)
        assert story.outcome.refusal is None


class TestMovingTheDay:
    """A changed reset hour or time zone, so that another day has begun or the current one ends later."""

    def test_eastward_into_tomorrow_begins_tomorrow(self) -> None:
        story = a_squad().given(use(300))
        story.when(SetPolicy(timezone="Pacific/Auckland"), at=1)
        policy_set, reset = story.events
        assert isinstance(policy_set, PolicySet)
        assert isinstance(reset, BudgetDayReset)
        assert (reset.day, reset.previous_day, reset.previous_used) == (TOMORROW, TODAY, 300)
        assert story.caused_by(BudgetDayReset) == story.position_of(PolicySet)

    def test_keeps_the_total_of_the_day_that_it_ends(self) -> None:
        story = a_squad().given(reserve(1, ttl=3600))
        story.when(SetPolicy(timezone="Pacific/Auckland", daily_tokens=5), at=1)
        policy_set, reset = story.events
        assert isinstance(policy_set, PolicySet)
        assert isinstance(reset, BudgetDayReset)
        assert (policy_set.day, reset.previous_total, reset.total) == (None, 1000, 5)
        assert (day(story).total, day(story, TOMORROW).total) == (1000, 5)

    def test_westward_into_yesterday_keeps_today_until_it_ends_there_too(self) -> None:
        story = a_squad().given(use(300))
        story.when(SetPolicy(timezone="Pacific/Honolulu"), at=60)
        assert (day(story).used, day(story).ends_at) == (300, datetime(2026, 3, 3, 10, tzinfo=UTC))

    def test_westward_after_midnight_never_returns_to_a_past_day(self) -> None:
        story = a_squad().given(use(300)).given(use(20), at=MIDNIGHT + 60)
        story.when(SetPolicy(timezone="America/New_York"), at=MIDNIGHT + 120)
        today = day(story, TOMORROW)
        assert (today.used, today.ends_at) == (20, datetime(2026, 3, 4, 5, tzinfo=UTC))
        story.when(use(1), at=MIDNIGHT + 5 * 3600)
        today = day(story, TOMORROW)
        assert (today.used, today.closed_at) == (21, None)
        assert today.ends_at == datetime(2026, 3, 4, 5, tzinfo=UTC)
        story.when(use(1), at=MIDNIGHT + 29 * 3600)
        assert day(story, date(2026, 3, 4)).used == 1

    def test_within_the_same_day_still_warns_when_the_budget_is_lowered_too(self) -> None:
        story = a_squad().given(use(400))
        story.when(SetPolicy(reset_hour=6, daily_tokens=500))
        assert story.events[2:] == [crossed(50, 400, 500), crossed(75, 400, 500)]
        assert day(story).warned_percent == 75

    def test_within_the_same_day_keeps_usage_reservations_and_warnings(self) -> None:
        story = a_squad().given(use(600), reserve(100)).given(SetPolicy(reset_hour=6))
        today = day(story)
        assert (today.used, today.reserved, today.warned_percent) == (600, 100, 50)
        assert today.starts_at == datetime(2026, 3, 2, 6, tzinfo=UTC)

    def test_to_a_later_hour_lengthens_the_current_day(self) -> None:
        story = a_squad().given(use(300)).when(SetPolicy(reset_hour=13), at=60)
        assert (day(story).day, day(story).used) == (TODAY, 300)
        assert day(story).ends_at == datetime(2026, 3, 3, 13, tzinfo=UTC)
        story.when(PassTime(), at=3600)
        assert story.events == []
        assert (day(story).used, day(story).ends_at) == (300, datetime(2026, 3, 3, 13, tzinfo=UTC))

    def test_to_a_later_hour_postpones_the_reset_that_refusals_name(self) -> None:
        story = a_squad().given(use(1000)).given(SetPolicy(reset_hour=13), at=60).when(reserve(1), at=120)
        assert story.refusal.extra["resets_at"] == datetime(2026, 3, 3, 13, tzinfo=UTC)
        assert story.refusal.retry_after_seconds == 25 * 3600 - 120
        story.when(reserve(1), at=25 * 3600)
        assert story.outcome.refusal is None


class TestFirstPolicy:
    def test_begins_the_first_day(self) -> None:
        story = Story().when(SetPolicy(daily_tokens=5))
        policy_set, reset = story.events
        assert isinstance(policy_set, PolicySet)
        assert policy_set.day is None
        assert reset == BudgetDayReset(
            day=TODAY,
            starts_at=datetime(2026, 3, 2, tzinfo=UTC),
            ends_at=datetime(2026, 3, 3, tzinfo=UTC),
            total=5,
            previous_day=None,
            previous_used=0,
            previous_total=0,
            previous_agents={},
        )
        assert [recorded.caused_by for recorded in story.recorded] == [None, 1]

    def test_fills_in_the_defaults(self) -> None:
        policy = Story().when(SetPolicy()).squad.policy
        assert (policy.daily_tokens, policy.conflict_window_seconds, policy.operation_timeout_seconds) == (
            100_000,
            30.0,
            60.0,
        )
        assert (policy.reset_hour, policy.timezone, policy.warning_percents) == (0, "UTC", [50, 75, 90])
        assert (policy.idle_after_minutes, policy.offline_after_minutes) == (10.0, 60.0)

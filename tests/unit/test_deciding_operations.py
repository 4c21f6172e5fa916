"""Decisions about operations: starting, conflicts, renewal, expiry and finishing."""

from __future__ import annotations

from typing import Any

import pytest

from eventstore.events import (
    BudgetThresholdCrossed,
    ConflictDetected,
    Event,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    TokensUsed,
)
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS
from projections.operations import OPERATIONS
from service.commands import (
    FinishOperation,
    Heartbeat,
    PassTime,
    RegisterAgent,
    RenewOperation,
    SetPolicy,
    StartOperation,
)
from tests.unit.stories import FRESH, START, UNKNOWN_ID, Story, given, moment

WINDOW, TIMEOUT = 30, 60
"""Seconds, by the default policy."""

E_1 = {"emailId": "e-1"}


def claim(agent: str, resources: dict[str, str] = E_1, ttl: float | None = None) -> StartOperation:
    return StartOperation(agent=agent, action="answer", resources=resources, ttl_seconds=ttl)


def started(agent: str, resources: dict[str, str] = E_1, **fields: Any) -> OperationStarted:
    times = {
        "ttl_seconds": float(TIMEOUT),
        "blocks_until": moment(WINDOW),
        "expires_at": moment(TIMEOUT),
        **fields,
    }
    return OperationStarted(operation_id=FRESH, agent=agent, action="answer", resources=resources, **times)


def conflict(agent: str, holder: str, operation: str, **fields: Any) -> ConflictDetected:
    return ConflictDetected(
        operation_id=operation,
        conflict_id=FRESH,
        agent=agent,
        action="answer",
        resources=fields.get("resources", E_1),
        contested=fields.get("contested", E_1),
        holders=[holder],
        holder_action="answer",
    )


def a_squad(policy: SetPolicy | None = None) -> Story:
    """Three registered, active agents: what follows records no events about them."""
    story = given(policy=policy)
    for name in ("ann", "bob", "eve"):
        story.given(RegisterAgent(name=name, role="agent"), Heartbeat(agent=name))
    return story


def holding(resources: dict[str, str] = E_1, ttl: float | None = None) -> tuple[Story, str]:
    """A squad in which ann holds a claim."""
    story = a_squad().given(claim("ann", resources, ttl))
    return story, story.id


class TestStarting:
    def test_operation_claims_the_resources_it_names(self) -> None:
        story = a_squad().when(claim("ann"))
        story.then(started("ann")).then_replied(
            fencing_token=story.position_of(OperationStarted),
            started_at=START,
            blocks_until=moment(WINDOW),
            expires_at=moment(TIMEOUT),
        )
        assert story.squad.claims(("emailId", "e-1")) == (story.id,)

    def test_fencing_token_is_the_start_events_position_even_after_a_registration(self) -> None:
        story = a_squad().when(claim("newcomer"))
        assert [recorded.type for recorded in story.recorded] == ["agent_registered", "operation_started"]
        story.then_replied(fencing_token=story.position_of(OperationStarted))
        assert story.row(OPERATIONS, story.id).fencing_token == story.log[-1].position

    def test_each_later_holder_gets_a_greater_fencing_token(self) -> None:
        story, tokens = a_squad(), []
        for turn, agent in enumerate(("ann", "bob", "ann", "eve")):
            story.given(claim(agent), at=turn * WINDOW)
            tokens.append(story.reply["fencing_token"])
        assert tokens == sorted(set(tokens))

    def test_operation_lasts_for_the_requested_ttl(self) -> None:
        story = a_squad().when(claim("ann", ttl=600))
        story.then(started("ann", ttl_seconds=600.0, expires_at=moment(600)))

    def test_operation_blocks_no_longer_than_its_ttl(self) -> None:
        story = a_squad().when(claim("ann", ttl=5))
        story.then(started("ann", ttl_seconds=5.0, blocks_until=moment(5), expires_at=moment(5)))
        story.when(claim("bob"), at=4.9)
        assert story.refusal.code == "conflict"
        story.when(claim("bob"), at=5)
        assert story.outcome.refusal is None

    def test_window_and_timeout_follow_the_policy(self) -> None:
        policy = SetPolicy(conflict_window_seconds=2, operation_timeout_seconds=7)
        story = a_squad(policy).when(claim("ann"))
        story.then(started("ann", ttl_seconds=7.0, blocks_until=moment(2), expires_at=moment(7)))


class TestConflict:
    def test_conflict_names_the_operation_in_the_way(self) -> None:
        story, operation = holding()
        token = story.reply["fencing_token"]
        story.when(claim("bob"), at=10)
        story.then_refused("conflict", conflict("bob", "ann", operation))
        assert story.refusal.extra["conflict"] == {
            "operation_id": operation,
            "agents": ["ann"],
            "action": "answer",
            "resources": E_1,
            "contested": E_1,
            "started_at": START,
            "blocks_until": moment(WINDOW),
            "expires_at": moment(TIMEOUT),
            "position": token,
        }
        assert story.refusal.retry_after_seconds == 20
        assert story.caused_by(ConflictDetected) == token
        assert "'ann'" in story.refusal.detail
        assert "e-1" in story.refusal.detail

    def test_one_contested_resource_is_enough(self) -> None:
        story, operation = holding({"emailId": "e-1", "customerId": "c-1"})
        wanted = {"orderId": "o-1", "customerId": "c-1"}
        story.when(claim("bob", wanted)).then_refused(
            "conflict",
            conflict("bob", "ann", operation, resources=wanted, contested={"customerId": "c-1"}),
        )

    def test_refused_operation_claims_none_of_its_resources(self) -> None:
        story, _ = holding({"customerId": "c-1"})
        story.when(claim("bob", {"orderId": "o-1", "customerId": "c-1"}))
        story.when(claim("eve", {"orderId": "o-1"})).then(started("eve", {"orderId": "o-1"}))

    def test_same_id_of_another_kind_does_not_conflict(self) -> None:
        story, _ = holding({"emailId": "1"})
        story.when(claim("bob", {"customerId": "1"})).then(started("bob", {"customerId": "1"}))

    def test_conflict_names_the_oldest_of_several_holders(self) -> None:
        story, first = holding({"emailId": "e-1"})
        story.given(claim("eve", {"customerId": "c-1"}), at=1)
        wanted = {"customerId": "c-1", "emailId": "e-1"}
        story.when(claim("bob", wanted), at=2).then_refused(
            "conflict", conflict("bob", "ann", first, resources=wanted)
        )

    def test_conflict_names_the_holder_whose_window_is_open_not_the_oldest(self) -> None:
        story, _ = holding()
        story.given(claim("eve"), at=WINDOW)
        story.when(claim("bob"), at=WINDOW + 1)
        story.then_refused("conflict", conflict("bob", "eve", story.squad.claims(("emailId", "e-1"))[1]))

    def test_agent_conflicts_with_its_own_claim(self) -> None:
        story, operation = holding()
        story.when(claim("ann"), at=1).then_refused("conflict", conflict("ann", "ann", operation))

    def test_first_of_several_claims_in_one_batch_wins(self) -> None:
        story = a_squad().when(claim("ann"), claim("bob"), claim("eve"))
        refused = [
            outcome.refusal.code
            for outcome in story.outcomes
            if not isinstance(outcome, Exception) and outcome.refusal
        ]
        assert refused == ["conflict", "conflict"]
        assert [recorded.type for recorded in story.recorded] == [
            "operation_started",
            "conflict_detected",
            "conflict_detected",
        ]

    def test_conflict_is_recorded_in_the_stream_of_the_operation_in_the_way(self) -> None:
        story, operation = holding()
        story.when(claim("bob"))
        assert (story.recorded[0].stream, story.recorded[0].version) == (f"operation-{operation}", 2)

    @pytest.mark.parametrize(("at", "seconds"), [(0, 30), (29.5, 1), (10.4, 20)])
    def test_retry_after_is_the_rest_of_the_window_rounded_up(self, at: float, seconds: int) -> None:
        story, _ = holding()
        story.when(claim("bob"), at=at)
        assert story.refusal.retry_after_seconds == seconds


class TestWindow:
    def test_window_blocks_until_its_end_exclusive(self) -> None:
        story, _ = holding()
        story.when(claim("bob"), at=WINDOW - 1e-6)
        assert story.refusal.code == "conflict"
        story.when(claim("bob"), at=WINDOW)
        assert story.outcome.refusal is None

    def test_operation_stays_active_when_its_window_ends(self) -> None:
        story, operation = holding()
        story.given(claim("bob"), at=WINDOW).then_clock_recorded()
        assert story.row(OPERATIONS, operation).state == "active"
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"), at=WINDOW + 1)
        story.then(
            OperationFinished(operation_id=operation, agent="ann", outcome="succeeded", tokens_used=None)
        )
        assert len(story.squad.claims(("emailId", "e-1"))) == 1

    def test_renewal_restarts_the_window(self) -> None:
        story, operation = holding()
        renewed_at = WINDOW - 1
        story.when(RenewOperation(operation_id=operation), at=renewed_at)
        story.then(
            OperationRenewed(
                operation_id=operation,
                agent="ann",
                blocks_until=moment(renewed_at + WINDOW),
                expires_at=moment(renewed_at + TIMEOUT),
            )
        ).then_replied(expires_at=moment(renewed_at + TIMEOUT))
        story.when(claim("bob"), at=renewed_at + WINDOW - 1)
        assert story.refusal.code == "conflict"


class TestRenewing:
    def test_renewal_extends_the_operation_by_its_original_ttl(self) -> None:
        story, operation = holding(ttl=600)
        story.when(RenewOperation(operation_id=operation), at=500)
        story.then_replied(expires_at=moment(1100), blocks_until=moment(500 + WINDOW))

    def test_renewal_succeeds_after_the_window_when_nobody_claimed_the_resource(self) -> None:
        story, operation = holding()
        story.when(RenewOperation(operation_id=operation), at=WINDOW + 10)
        assert story.outcome.refusal is None
        story.when(claim("bob"))
        story.then_refused("conflict", conflict("bob", "ann", operation))

    def test_renewal_conflicts_with_a_later_claim(self) -> None:
        story, operation = holding()
        story.given(claim("bob"), at=WINDOW)
        bobs_claim = story.id
        story.when(RenewOperation(operation_id=operation), at=WINDOW + 1)
        story.then_refused("conflict", conflict("ann", "bob", bobs_claim))

    def test_renewal_conflicts_with_a_later_claim_even_after_its_window(self) -> None:
        """Otherwise the later of two holders would have the smaller fencing token."""
        story, operation = holding(ttl=600)
        story.given(claim("bob", ttl=600), at=WINDOW)
        bobs_claim = story.id
        story.when(RenewOperation(operation_id=operation), at=3 * WINDOW)
        story.then_refused("conflict", conflict("ann", "bob", bobs_claim))
        story.when(RenewOperation(operation_id=bobs_claim))
        assert story.outcome.refusal is None

    @pytest.mark.parametrize(("at", "seconds"), [(WINDOW, 600), (3 * WINDOW, 540)])
    def test_refused_renewal_says_when_it_can_be_retried(self, at: float, seconds: int) -> None:
        story, operation = holding(ttl=900)
        story.given(claim("bob", ttl=600), at=WINDOW)
        story.when(RenewOperation(operation_id=operation), at=at)
        assert story.refusal.retry_after_seconds == seconds
        story.when(RenewOperation(operation_id=operation), at=at + seconds - 1)
        assert story.refusal.code == "conflict"
        story.when(RenewOperation(operation_id=operation), at=at + seconds)
        assert story.outcome.refusal is None

    @pytest.mark.parametrize(("ttl", "seconds"), [(60, None), (630, None), (631, 600)])
    def test_refused_renewal_names_no_retry_at_which_the_operation_itself_has_expired(
        self, ttl: float, seconds: int | None
    ) -> None:
        story, operation = holding(ttl=ttl)
        story.given(claim("bob", ttl=600), at=WINDOW)
        story.when(RenewOperation(operation_id=operation))
        assert story.refusal.code == "conflict"
        assert story.refusal.retry_after_seconds == seconds
        assert story.refusal.detail.startswith("'bob' has claimed emailId e-1 for 'answer'; operation ")
        assert ("is lost to that claim: stop" in story.refusal.detail) is (seconds is None)

    def test_renewal_succeeds_once_the_later_claim_has_expired_even_if_unrecorded(self) -> None:
        story, operation = holding(ttl=600)
        story.given(claim("bob", ttl=5), at=WINDOW).when(PassTime(), at=WINDOW + 4.9)
        story.when(RenewOperation(operation_id=operation), at=WINDOW + 5).then_clock_recorded()
        assert story.outcome.refusal is None

    def test_renewal_succeeds_once_the_later_claim_has_finished(self) -> None:
        story, operation = holding(ttl=600)
        story.given(claim("bob", ttl=600), at=WINDOW)
        story.given(FinishOperation(operation_id=story.id, outcome="cancelled"), at=WINDOW + 5)
        story.when(RenewOperation(operation_id=operation), at=WINDOW + 6)
        assert story.outcome.refusal is None

    def test_renewal_of_an_unknown_operation_is_refused(self) -> None:
        a_squad().when(RenewOperation(operation_id=UNKNOWN_ID)).then_refused("operation_not_found")

    def test_renewal_of_a_finished_operation_is_refused(self) -> None:
        story, operation = holding()
        story.given(FinishOperation(operation_id=operation, outcome="failed"), at=1)
        story.when(RenewOperation(operation_id=operation), at=2).then_refused("operation_finished")
        assert story.refusal.extra == {"outcome": "failed"}


class TestExpiry:
    def test_operation_expires_at_the_end_of_its_ttl(self) -> None:
        story, operation = holding()
        story.when(PassTime(), at=TIMEOUT - 1e-6).then_clock_recorded()
        story.when(PassTime(), at=TIMEOUT + 1)
        story.then_clock_recorded(OperationExpired(operation_id=operation, agent="ann"))
        assert story.squad.claims(("emailId", "e-1")) == ()

    def test_renewal_at_the_moment_of_expiry_is_refused(self) -> None:
        story, operation = holding()
        story.when(RenewOperation(operation_id=operation), at=TIMEOUT)
        story.then_clock_recorded(OperationExpired(operation_id=operation, agent="ann"))
        story.then_refused("operation_expired")
        assert story.refusal.extra == {"expired_at": moment(TIMEOUT)}

    def test_expiry_counts_by_the_clock_even_before_it_is_recorded(self) -> None:
        """The state is checked for expiry every quarter of a second at most."""
        story, operation = holding()
        story.given(PassTime(), at=TIMEOUT - 0.1)
        story.when(RenewOperation(operation_id=operation), at=TIMEOUT).then_clock_recorded()
        story.then_refused("operation_expired")
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"))
        story.then_refused("operation_expired")

    def test_expired_operation_cannot_be_finished(self) -> None:
        story, operation = holding()
        story.given(PassTime(), at=TIMEOUT)
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"), at=TIMEOUT + 60)
        story.then_refused("operation_expired")

    def test_late_finish_with_tokens_is_told_where_to_record_them(self) -> None:
        story, operation = holding()
        story.given(PassTime(), at=TIMEOUT)
        story.when(FinishOperation(operation_id=operation, outcome="succeeded", tokens_used=7))
        story.then_refused("operation_expired")
        assert story.refusal.detail.endswith("record what was spent with POST /api/v1/budget/usage")
        story.when(FinishOperation(operation_id=operation, outcome="succeeded", tokens_used=0))
        story.then_refused("operation_expired")
        assert "/budget/usage" not in story.refusal.detail

    def test_expiry_releases_the_claims(self) -> None:
        story, _ = holding({"emailId": "e-1", "customerId": "c-1"})
        wanted = {"customerId": "c-1"}
        story.when(claim("bob", wanted), at=TIMEOUT)
        story.then(
            started(
                "bob",
                wanted,
                blocks_until=moment(TIMEOUT + WINDOW),
                expires_at=moment(2 * TIMEOUT),
            )
        )
        assert story.squad.claims(("emailId", "e-1")) == ()

    def test_expiry_names_the_last_renewal_as_its_cause(self) -> None:
        story, operation = holding()
        story.given(RenewOperation(operation_id=operation), at=10)
        renewed = story.log[-1].position
        story.when(PassTime(), at=10 + TIMEOUT)
        assert story.caused_by(OperationExpired) == renewed


class TestFinishing:
    def test_finishing_releases_the_claims(self) -> None:
        story, operation = holding()
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"), at=5)
        story.then(
            OperationFinished(operation_id=operation, agent="ann", outcome="succeeded", tokens_used=None)
        ).then_replied(outcome="succeeded", ended_at=moment(5))
        assert story.squad.claims(("emailId", "e-1")) == ()
        story.when(claim("bob"))
        assert story.outcome.refusal is None

    def test_finishing_twice_is_refused(self) -> None:
        story, operation = holding()
        done = FinishOperation(operation_id=operation, outcome="succeeded")
        story.given(done, at=1).when(done, at=2).then_refused("operation_finished")

    def test_finishing_twice_in_one_batch_is_refused_the_second_time(self) -> None:
        story, operation = holding()
        done = FinishOperation(operation_id=operation, outcome="succeeded")
        story.when(done, done)
        assert story.refusal.code == "operation_finished"
        assert [recorded.type for recorded in story.recorded] == ["operation_finished"]
        assert story.row(AGENTS, "ann").operations == 0

    def test_finishing_an_unknown_operation_is_refused(self) -> None:
        finish = FinishOperation(operation_id=UNKNOWN_ID, outcome="failed")
        a_squad().when(finish).then_refused("operation_not_found")

    def test_finished_operation_leaves_memory(self) -> None:
        story, operation = holding()
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"))
        assert story.squad.rows(OPERATIONS).get(operation) is None
        assert f"operation-{operation}" not in story.squad.versions

    def test_finish_names_the_start_as_its_cause(self) -> None:
        story, operation = holding()
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"))
        assert story.caused_by(OperationFinished) == story.position_of(OperationStarted)


class TestFinishingWithTokens:
    def finish(self, tokens: int, policy: SetPolicy | None = None) -> tuple[Story, tuple[Event, ...]]:
        story = a_squad(policy).given(claim("ann"))
        operation = story.id
        story.when(FinishOperation(operation_id=operation, outcome="succeeded", tokens_used=tokens), at=1)
        return story, (
            OperationFinished(operation_id=operation, agent="ann", outcome="succeeded", tokens_used=tokens),
            TokensUsed(day=START.date(), agent="ann", tokens=tokens, operation_id=operation),
        )

    def test_tokens_used_are_recorded(self) -> None:
        story, events = self.finish(450)
        story.then(*events).then_replied(tokens_used=450)
        assert story.row(BUDGET_DAYS, START.date()).used == 450
        assert story.caused_by(TokensUsed) == story.position_of(OperationFinished)

    def test_tokens_used_can_cross_warning_thresholds(self) -> None:
        story, events = self.finish(750, SetPolicy(daily_tokens=1000))
        info, warning = (
            BudgetThresholdCrossed(day=START.date(), percent=50, level="info", used=750, total=1000),
            BudgetThresholdCrossed(day=START.date(), percent=75, level="warning", used=750, total=1000),
        )
        story.then(*events, info, warning)
        assert story.caused_by(BudgetThresholdCrossed) == story.position_of(TokensUsed)

    def test_tokens_beyond_the_budget_are_not_refused(self) -> None:
        story, _ = self.finish(10**9)
        assert story.outcome.refusal is None

    def test_zero_tokens_record_no_use(self) -> None:
        story, (finished, _) = self.finish(0)
        story.then(finished)

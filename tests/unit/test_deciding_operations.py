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
from tests.unit.support import FRESH, START, UNKNOWN_ID, Story, given, moment

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


def turned_away(agent: str, by: str, operation: str, **fields: Any) -> ConflictDetected:
    return ConflictDetected(
        operation_id=operation,
        conflict_id=FRESH,
        agent=agent,
        action="answer",
        resources=fields.get("resources", E_1),
        contested=fields.get("contested", E_1),
        holders=[by],
        holder_action="answer",
    )


def a_squad(policy: SetPolicy | None = None) -> Story:
    """Three agents at work, of whom nothing more needs to be said."""
    story = given(policy=policy)
    for name in ("ann", "bob", "eve"):
        story.given(RegisterAgent(name=name, role="agent"), Heartbeat(agent=name))
    return story


def holding(resources: dict[str, str] = E_1, ttl: float | None = None) -> tuple[Story, str]:
    """A squad in which ann holds a claim."""
    story = a_squad().given(claim("ann", resources, ttl))
    return story, story.id


class TestStarting:
    def test_claims_what_it_names(self) -> None:
        story = a_squad().when(claim("ann"))
        story.then(started("ann")).replied(
            fencing_token=story.position_of(OperationStarted),
            started_at=START,
            blocks_until=moment(WINDOW),
            expires_at=moment(TIMEOUT),
        )
        assert story.squad.claims(("emailId", "e-1")) == (story.id,)

    def test_takes_the_fencing_token_of_its_own_event_also_after_others_of_the_same_command(self) -> None:
        story = a_squad().when(claim("newcomer"))
        assert [recorded.type for recorded in story.recorded] == ["agent_registered", "operation_started"]
        story.replied(fencing_token=story.position_of(OperationStarted))
        assert story.row(OPERATIONS, story.id).fencing_token == story.log[-1].position

    def test_gives_every_next_holder_a_greater_token(self) -> None:
        story, tokens = a_squad(), []
        for turn, agent in enumerate(("ann", "bob", "ann", "eve")):
            story.given(claim(agent), at=turn * WINDOW)
            tokens.append(story.reply["fencing_token"])
        assert tokens == sorted(set(tokens))

    def test_lasts_as_long_as_it_asks_for(self) -> None:
        story = a_squad().when(claim("ann", ttl=600))
        story.then(started("ann", ttl_seconds=600.0, expires_at=moment(600)))

    def test_blocks_no_longer_than_it_lasts(self) -> None:
        story = a_squad().when(claim("ann", ttl=5))
        story.then(started("ann", ttl_seconds=5.0, blocks_until=moment(5), expires_at=moment(5)))
        story.when(claim("bob"), at=4.9)
        assert story.refusal.code == "conflict"
        story.when(claim("bob"), at=5)
        assert story.outcome.refusal is None

    def test_keeps_to_the_policy(self) -> None:
        policy = SetPolicy(conflict_window_seconds=2, operation_timeout_seconds=7)
        story = a_squad(policy).when(claim("ann"))
        story.then(started("ann", ttl_seconds=7.0, blocks_until=moment(2), expires_at=moment(7)))


class TestConflict:
    def test_names_the_operation_in_the_way(self) -> None:
        story, operation = holding()
        token = story.reply["fencing_token"]
        story.when(claim("bob"), at=10)
        story.then_refused("conflict", turned_away("bob", "ann", operation))
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

    def test_of_any_one_resource_is_enough(self) -> None:
        story, operation = holding({"emailId": "e-1", "customerId": "c-1"})
        wanted = {"orderId": "o-1", "customerId": "c-1"}
        story.when(claim("bob", wanted)).then_refused(
            "conflict",
            turned_away("bob", "ann", operation, resources=wanted, contested={"customerId": "c-1"}),
        )

    def test_takes_nothing_of_what_was_free(self) -> None:
        story, _ = holding({"customerId": "c-1"})
        story.when(claim("bob", {"orderId": "o-1", "customerId": "c-1"}))
        story.when(claim("eve", {"orderId": "o-1"})).then(started("eve", {"orderId": "o-1"}))

    def test_is_none_where_kinds_differ(self) -> None:
        story, _ = holding({"emailId": "1"})
        story.when(claim("bob", {"customerId": "1"})).then(started("bob", {"customerId": "1"}))

    def test_is_with_the_oldest_of_several_holders(self) -> None:
        story, first = holding({"emailId": "e-1"})
        story.given(claim("eve", {"customerId": "c-1"}), at=1)
        wanted = {"customerId": "c-1", "emailId": "e-1"}
        story.when(claim("bob", wanted), at=2).then_refused(
            "conflict", turned_away("bob", "ann", first, resources=wanted)
        )

    def test_is_with_the_one_whose_window_is_open_not_with_the_oldest(self) -> None:
        story, _ = holding()
        story.given(claim("eve"), at=WINDOW)
        story.when(claim("bob"), at=WINDOW + 1)
        story.then_refused("conflict", turned_away("bob", "eve", story.squad.claims(("emailId", "e-1"))[1]))

    def test_meets_the_same_agent_too(self) -> None:
        story, operation = holding()
        story.when(claim("ann"), at=1).then_refused("conflict", turned_away("ann", "ann", operation))

    def test_within_one_batch_lets_the_first_have_it(self) -> None:
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

    def test_is_recorded_in_the_history_of_the_operation_in_the_way(self) -> None:
        story, operation = holding()
        story.when(claim("bob"))
        assert (story.recorded[0].stream, story.recorded[0].version) == (f"operation-{operation}", 2)

    @pytest.mark.parametrize(("at", "seconds"), [(0, 30), (29.5, 1), (10.4, 20)])
    def test_says_after_how_many_whole_seconds_the_window_is_over(self, at: float, seconds: int) -> None:
        story, _ = holding()
        story.when(claim("bob"), at=at)
        assert story.refusal.retry_after_seconds == seconds


class TestWindow:
    def test_blocks_up_to_its_end_and_not_at_it(self) -> None:
        story, _ = holding()
        story.when(claim("bob"), at=WINDOW - 1e-6)
        assert story.refusal.code == "conflict"
        story.when(claim("bob"), at=WINDOW)
        assert story.outcome.refusal is None

    def test_leaves_the_operation_alive_when_it_ends(self) -> None:
        story, operation = holding()
        story.given(claim("bob"), at=WINDOW).meanwhile()
        assert story.row(OPERATIONS, operation).state == "active"
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"), at=WINDOW + 1)
        story.then(
            OperationFinished(operation_id=operation, agent="ann", outcome="succeeded", tokens_used=None)
        )
        assert len(story.squad.claims(("emailId", "e-1"))) == 1

    def test_starts_again_with_each_heartbeat(self) -> None:
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
        ).replied(expires_at=moment(renewed_at + TIMEOUT))
        story.when(claim("bob"), at=renewed_at + WINDOW - 1)
        assert story.refusal.code == "conflict"


class TestRenewing:
    def test_lasts_as_long_again_as_was_asked_for_at_the_start(self) -> None:
        story, operation = holding(ttl=600)
        story.when(RenewOperation(operation_id=operation), at=500)
        story.replied(expires_at=moment(1100), blocks_until=moment(500 + WINDOW))

    def test_is_possible_after_the_window_where_nobody_came_in_between(self) -> None:
        story, operation = holding()
        story.when(RenewOperation(operation_id=operation), at=WINDOW + 10)
        assert story.outcome.refusal is None
        story.when(claim("bob"))
        story.then_refused("conflict", turned_away("bob", "ann", operation))

    def test_conflicts_with_whoever_has_claimed_it_since(self) -> None:
        story, operation = holding()
        story.given(claim("bob"), at=WINDOW)
        of_bob = story.id
        story.when(RenewOperation(operation_id=operation), at=WINDOW + 1)
        story.then_refused("conflict", turned_away("ann", "bob", of_bob))

    def test_conflicts_with_whoever_has_claimed_since_even_after_that_ones_window(self) -> None:
        """Otherwise the later of two holders would have the lesser fencing token."""
        story, operation = holding(ttl=600)
        story.given(claim("bob", ttl=600), at=WINDOW)
        of_bob = story.id
        story.when(RenewOperation(operation_id=operation), at=3 * WINDOW)
        story.then_refused("conflict", turned_away("ann", "bob", of_bob))
        story.when(RenewOperation(operation_id=of_bob))
        assert story.outcome.refusal is None

    @pytest.mark.parametrize(("at", "seconds"), [(WINDOW, 600), (3 * WINDOW, 540)])
    def test_says_after_how_many_seconds_that_one_is_over(self, at: float, seconds: int) -> None:
        story, operation = holding(ttl=900)
        story.given(claim("bob", ttl=600), at=WINDOW)
        story.when(RenewOperation(operation_id=operation), at=at)
        assert story.refusal.retry_after_seconds == seconds
        story.when(RenewOperation(operation_id=operation), at=at + seconds - 1)
        assert story.refusal.code == "conflict"
        story.when(RenewOperation(operation_id=operation), at=at + seconds)
        assert story.outcome.refusal is None

    def test_is_possible_again_once_that_one_has_run_out_even_before_that_is_recorded(self) -> None:
        story, operation = holding(ttl=600)
        story.given(claim("bob", ttl=5), at=WINDOW).when(PassTime(), at=WINDOW + 4.9)
        story.when(RenewOperation(operation_id=operation), at=WINDOW + 5).meanwhile()
        assert story.outcome.refusal is None

    def test_is_possible_again_once_that_one_has_finished(self) -> None:
        story, operation = holding(ttl=600)
        story.given(claim("bob", ttl=600), at=WINDOW)
        story.given(FinishOperation(operation_id=story.id, outcome="cancelled"), at=WINDOW + 5)
        story.when(RenewOperation(operation_id=operation), at=WINDOW + 6)
        assert story.outcome.refusal is None

    def test_of_an_unknown_operation_is_refused(self) -> None:
        a_squad().when(RenewOperation(operation_id=UNKNOWN_ID)).then_refused("operation_not_found")

    def test_of_a_finished_operation_is_refused(self) -> None:
        story, operation = holding()
        story.given(FinishOperation(operation_id=operation, outcome="failed"), at=1)
        story.when(RenewOperation(operation_id=operation), at=2).then_refused("operation_finished")
        assert story.refusal.extra == {"outcome": "failed"}


class TestExpiring:
    def test_comes_at_the_end_of_the_time_to_live(self) -> None:
        story, operation = holding()
        story.when(PassTime(), at=TIMEOUT - 1e-6).meanwhile()
        story.when(PassTime(), at=TIMEOUT + 1)
        story.meanwhile(OperationExpired(operation_id=operation, agent="ann"))
        assert story.squad.claims(("emailId", "e-1")) == ()

    def test_refuses_a_heartbeat_that_is_late_by_nothing(self) -> None:
        story, operation = holding()
        story.when(RenewOperation(operation_id=operation), at=TIMEOUT)
        story.meanwhile(OperationExpired(operation_id=operation, agent="ann"))
        story.then_refused("operation_expired")
        assert story.refusal.extra == {"expired_at": moment(TIMEOUT)}

    def test_is_judged_by_the_clock_even_before_it_is_recorded(self) -> None:
        """The state is looked through every quarter of a second at most."""
        story, operation = holding()
        story.given(PassTime(), at=TIMEOUT - 0.1)
        story.when(RenewOperation(operation_id=operation), at=TIMEOUT).meanwhile()
        story.then_refused("operation_expired")
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"))
        story.then_refused("operation_expired")

    def test_refuses_to_finish_afterwards(self) -> None:
        story, operation = holding()
        story.given(PassTime(), at=TIMEOUT)
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"), at=TIMEOUT + 60)
        story.then_refused("operation_expired")

    def test_frees_its_claims(self) -> None:
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

    def test_names_the_last_sign_of_life_as_its_cause(self) -> None:
        story, operation = holding()
        story.given(RenewOperation(operation_id=operation), at=10)
        renewed = story.log[-1].position
        story.when(PassTime(), at=10 + TIMEOUT)
        assert story.caused_by(OperationExpired) == renewed


class TestFinishing:
    def test_gives_the_claims_back(self) -> None:
        story, operation = holding()
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"), at=5)
        story.then(
            OperationFinished(operation_id=operation, agent="ann", outcome="succeeded", tokens_used=None)
        ).replied(outcome="succeeded", ended_at=moment(5))
        assert story.squad.claims(("emailId", "e-1")) == ()
        story.when(claim("bob"))
        assert story.outcome.refusal is None

    def test_twice_is_refused(self) -> None:
        story, operation = holding()
        done = FinishOperation(operation_id=operation, outcome="succeeded")
        story.given(done, at=1).when(done, at=2).then_refused("operation_finished")

    def test_twice_in_one_batch_is_refused_the_second_time(self) -> None:
        story, operation = holding()
        done = FinishOperation(operation_id=operation, outcome="succeeded")
        story.when(done, done)
        assert story.refusal.code == "operation_finished"
        assert [recorded.type for recorded in story.recorded] == ["operation_finished"]
        assert story.row(AGENTS, "ann").operations == 0

    def test_of_an_unknown_operation_is_refused(self) -> None:
        finish = FinishOperation(operation_id=UNKNOWN_ID, outcome="failed")
        a_squad().when(finish).then_refused("operation_not_found")

    def test_lets_the_operation_leave_memory(self) -> None:
        story, operation = holding()
        story.when(FinishOperation(operation_id=operation, outcome="succeeded"))
        assert story.squad.rows(OPERATIONS).get(operation) is None
        assert f"operation-{operation}" not in story.squad.versions

    def test_names_the_start_as_its_cause(self) -> None:
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

    def test_records_their_use(self) -> None:
        story, events = self.finish(450)
        story.then(*events).replied(tokens_used=450)
        assert story.row(BUDGET_DAYS, START.date()).used == 450
        assert story.caused_by(TokensUsed) == story.position_of(OperationFinished)

    def test_may_set_off_warnings(self) -> None:
        story, events = self.finish(750, SetPolicy(daily_tokens=1000))
        info, warning = (
            BudgetThresholdCrossed(day=START.date(), percent=50, level="info", used=750, total=1000),
            BudgetThresholdCrossed(day=START.date(), percent=75, level="warning", used=750, total=1000),
        )
        story.then(*events, info, warning)
        assert story.caused_by(BudgetThresholdCrossed) == story.position_of(TokensUsed)

    def test_is_never_refused_for_the_budgets_sake(self) -> None:
        story, _ = self.finish(10**9)
        assert story.outcome.refusal is None

    def test_of_none_records_no_use(self) -> None:
        story, (finished, _) = self.finish(0)
        story.then(finished)

"""What tokens were spent on, as it is reported and recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import ValidationError

from eventstore.events import OperationFinished, TokensSettled, TokensUsed
from projections.budgets import BUDGET_DAYS
from projections.runs import run_id
from service import commands as do
from service.explain.sentences import of_event
from service.scheduling.calls import usage_in
from tests.unit.job_stories import JOB, claim, end_attempt, with_job
from tests.unit.stories import START, UNKNOWN_ID, given, moment

if TYPE_CHECKING:
    from eventstore.events import AnyEvent

TODAY = START.date()
SPENT: dict[str, Any] = {"input_tokens": 20, "output_tokens": 5, "model": "small"}
RUN = run_id(JOB, moment(60))


def settle(reservation: str = UNKNOWN_ID, **spent: Any) -> do.SettleReservation:
    return do.SettleReservation.model_validate({"reservation_id": reservation, **spent})


def finish(operation: str = UNKNOWN_ID, **spent: Any) -> do.FinishOperation:
    return do.FinishOperation.model_validate({"operation_id": operation, "outcome": "succeeded", **spent})


class TestReports:
    @pytest.mark.parametrize("command", [settle, finish])
    @pytest.mark.parametrize(
        ("spent", "usage"),
        [
            ({"tokens_used": 5}, do.Usage(5)),
            ({"tokens_used": 5, "model": "small"}, do.Usage(5, model="small")),
            ({"tokens_used": 5, "input_tokens": 3}, do.Usage(5, 3)),
            ({"input_tokens": 3, "output_tokens": 2}, do.Usage(5, 3, 2)),
            ({"tokens_used": 5, "input_tokens": 3, "output_tokens": 2}, do.Usage(5, 3, 2)),
        ],
        ids=str,
    )
    def test_total_is_given_or_the_sum_of_input_and_output(
        self, command: Any, spent: dict[str, Any], usage: do.Usage
    ) -> None:
        assert command(**spent).usage == usage

    @pytest.mark.parametrize("command", [settle, finish])
    @pytest.mark.parametrize(
        "spent",
        [
            {"input_tokens": 3},
            {"output_tokens": 3},
            {"tokens_used": 6, "input_tokens": 3, "output_tokens": 2},
            {"tokens_used": 2, "input_tokens": 3},
        ],
        ids=str,
    )
    def test_report_is_rejected_when_its_counts_do_not_add_up(
        self, command: Any, spent: dict[str, Any]
    ) -> None:
        with pytest.raises(ValidationError, match="tokens_used"):
            command(**spent)

    def test_only_the_end_of_an_operation_may_report_nothing(self) -> None:
        assert finish().usage is None
        with pytest.raises(ValidationError, match="name tokens_used, or both"):
            settle()

    @pytest.mark.parametrize(
        ("body", "usage"),
        [
            ({"usage": {"input_tokens": 3, "output_tokens": 2}, "model": "small"}, (5, 3, 2, "small")),
            ({"tokens_used": 5, "model": "small"}, (5, None, None, "small")),
            ({"tokens_used": 5, "usage": {"input_tokens": 3, "output_tokens": 2}}, (5, 3, 2, None)),
            ({"tokens_used": 9, "usage": {"input_tokens": 3, "output_tokens": 2}}, (9, None, None, None)),
            ({"usage": {"input_tokens": 3}, "model": "small"}, (3, 3, None, "small")),
            ({"tokens_used": 5, "model": "two\nlines"}, (5, None, None, None)),
            ({"tokens_used": 5, "model": "x" * 101}, (5, None, None, None)),
            ({"tokens_used": 5, "model": ["small"]}, (5, None, None, None)),
        ],
        ids=str,
    )
    def test_agent_that_is_called_reports_what_it_spent(
        self, body: dict[str, Any], usage: tuple[Any, ...]
    ) -> None:
        assert usage_in(body) == usage

    def test_agent_that_reports_only_a_model_has_reported_no_tokens(self) -> None:
        assert usage_in({"model": "small"}) is None


class TestDecisions:
    def test_settlement_keeps_what_was_reported(self) -> None:
        story = given(do.ReserveTokens(agent="ann", tokens=40))
        reservation = story.id
        story.when(settle(reservation, **SPENT)).then_replied(tokens_used=25)
        assert story.events == [
            TokensSettled(
                day=TODAY,
                reservation_id=reservation,
                agent="ann",
                tokens_reserved=40,
                tokens_used=25,
                **SPENT,
            )
        ]
        assert story.row(BUDGET_DAYS, TODAY).used == 25

    def test_settlement_is_explained_with_its_model(self) -> None:
        story = given(do.ReserveTokens(agent="ann", tokens=40))
        [event] = story.when(settle(story.id, **SPENT)).events
        assert of_event(cast("AnyEvent", event)) == (
            "ann used 25 of the 40 tokens reserved for it, with “small”."
        )

    def test_finish_records_what_was_reported(self) -> None:
        story = given(do.StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}))
        operation = story.id
        story.when(finish(operation, **SPENT)).then_replied(tokens_used=25)
        assert story.events == [
            OperationFinished(operation_id=operation, agent="ann", outcome="succeeded", tokens_used=25),
            TokensUsed(day=TODAY, agent="ann", tokens=25, operation_id=operation, **SPENT),
        ]

    def test_finish_after_expiry_refers_to_usage_when_only_input_and_output_were_given(self) -> None:
        story = given(do.StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}))
        story.when(finish(story.id, **SPENT), at=3_600)
        assert "/budget/usage" in story.refusal.detail

    def test_run_settles_with_what_its_agent_reported(self) -> None:
        story = with_job(tokens=40).given(claim(), at=60).when(end_attempt(RUN, **SPENT), at=65)
        [settled] = [event for event in story.events if isinstance(event, TokensSettled)]
        assert settled.tokens_used == 25
        assert {name: getattr(settled, name) for name in SPENT} == SPENT

    def test_attempt_that_fails_records_what_its_agent_reported_when_the_run_goes_on(self) -> None:
        story = with_job(tokens=40, retries=1).given(claim(), at=60)
        story.when(end_attempt(RUN, succeeded=False, **SPENT), at=65)
        assert TokensUsed(day=TODAY, agent="ann", tokens=25, **SPENT) in story.events

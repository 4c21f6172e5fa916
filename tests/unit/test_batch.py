from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from eventstore.events import AgentHeartbeatRecorded, AppendAbandoned, MessageSent, RequestAnswered
from projections.agents import AGENTS
from projections.projection import MissingRow
from service.commands import (
    AnyCommand,
    FinishOperation,
    PassTime,
    RecordUsage,
    RegisterAgent,
    ReserveTokens,
    SendMessage,
    SetPolicy,
    StartOperation,
)
from service.requests import Answer, CommandFailed, Outcome, Request
from service.writing import batch as module
from tests.unit.support import UNKNOWN_ID, Story, given

if TYPE_CHECKING:
    from collections.abc import Callable

ANN = RegisterAgent(name="ann", role="agent")
HELLO = SendMessage(from_agent="ann", message="hello")


def render(outcome: Outcome) -> Answer:
    if outcome.refusal:
        return Answer(429, {"code": outcome.refusal.code})
    return Answer(201, {"id": outcome.reply["id"]})


def break_down(outcome: Outcome) -> Answer:
    raise RuntimeError(f"cannot render {outcome.position}")


def request(
    command: AnyCommand,
    key: str | None = None,
    fingerprint: str = "POST /somewhere",
    answer: Callable[[Outcome], Answer] = render,
) -> Request:
    return Request(command, "agent:ann", f"request {key}", key, fingerprint, answer)


def batched(key: str, *commands: AnyCommand) -> list[Request]:
    """What a batch with this idempotency key asks for."""
    return [
        Request(
            command,
            "agent:ann",
            f"request {key}",
            f"batch:{index} {key}",
            "POST /batch",
            render,
            bare_fingerprint="POST /batch, bare",
            batch_key=key,
        )
        for index, command in enumerate(commands)
    ]


def faulty(command: AnyCommand) -> Request:
    """A request that fails after its command was decided and folded."""
    return request(command, "faulty", answer=break_down)


class TestRequestIds:
    def test_are_given_to_all_events_of_a_request_and_so_is_the_actor(self) -> None:
        story = given().when(request(HELLO), request(HELLO, "k"))
        assert [(recorded.actor, recorded.correlation_id) for recorded in story.recorded] == [
            ("agent:ann", "request None"),
            ("agent:ann", "request None"),
            ("agent:ann", "request k"),
            ("agent:ann", "request k"),
        ]

    def test_of_a_batch_are_recorded_at_one_time(self) -> None:
        story = given().when(HELLO, HELLO, at=5)
        assert {recorded.recorded_at for recorded in story.recorded} == {story.now}


class TestIdempotency:
    def test_keeps_the_first_answer(self) -> None:
        story = given(ANN).given(HELLO).when(request(HELLO, "k"))
        sent, answered = story.events
        assert isinstance(sent, MessageSent)
        assert answered == RequestAnswered(
            key="k", fingerprint="POST /somewhere", status=201, body={"id": story.id}
        )
        assert story.recorded[1].idempotency_key == "k"
        assert story.recorded[0].idempotency_key is None
        assert story.recorded[1].caused_by == story.recorded[0].position

    def test_gives_it_again_to_a_repeat(self) -> None:
        story = given().when(request(HELLO, "k"))
        first = story.id
        story.when(request(HELLO, "k"), at=3600).then_nothing()
        assert story.outcome.repeated == Answer(201, {"id": first})

    def test_gives_it_again_within_the_same_batch(self) -> None:
        story = given(ANN).given(HELLO).when(request(HELLO, "k"), request(HELLO, "k"))
        assert [recorded.type for recorded in story.recorded] == ["message_sent", "request_answered"]
        first, second = story.outcomes
        assert isinstance(first, Outcome)
        assert isinstance(second, Outcome)
        assert second.repeated == Answer(201, {"id": first.reply["id"]})

    def test_refuses_the_key_for_another_request(self) -> None:
        story = given().when(request(HELLO, "k"))
        story.when(request(HELLO, "k", "POST /elsewhere")).then_refused("idempotency_mismatch")
        assert "'k'" in story.refusal.detail

    def test_of_a_batch_is_kept_beside_those_of_its_commands(self) -> None:
        story = given(ANN).given(HELLO).when(*batched("k", HELLO, HELLO))
        kept = [event.key for event in story.events if isinstance(event, RequestAnswered)]
        assert kept == ["batch:0 k", "k", "batch:1 k"]
        story.when(*batched("k", HELLO, HELLO)).then_nothing()
        story.when(request(HELLO, "k")).then_refused("idempotency_mismatch")

    def test_of_a_batch_is_refused_where_another_request_was_decided_first(self) -> None:
        story = given(ANN).when(request(HELLO, "k"), *batched("k", HELLO))
        assert isinstance(outcome := story.outcomes[1], Outcome)
        assert outcome.refusal
        assert outcome.refusal.code == "idempotency_mismatch"
        assert "'k'" in outcome.refusal.detail
        assert sum(isinstance(event, MessageSent) for event in story.events) == 1

    def test_keeps_a_refusal_that_was_recorded(self) -> None:
        too_much = ReserveTokens(agent="ann", tokens=10)
        story = given(policy=SetPolicy(daily_tokens=1)).when(request(too_much, "k"))
        assert [recorded.type for recorded in story.recorded][-2:] == ["tokens_denied", "request_answered"]
        story.when(request(too_much, "k")).then_nothing()
        assert story.outcome.repeated == Answer(429, {"code": "budget_exhausted"})

    def test_keeps_no_refusal_that_left_no_trace(self) -> None:
        finish = FinishOperation(operation_id=UNKNOWN_ID, outcome="failed")
        story = given()
        for _ in range(2):
            story.when(request(finish, "k")).then_refused("operation_not_found")
            assert (story.outcome.position, story.outcome.repeated) == (None, None)


class TestFaults:
    @pytest.fixture(autouse=True)
    def _quiet(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL, logger="service.writing.batch")

    def test_of_one_command_are_no_other_commands(self) -> None:
        story = given(ANN).given(HELLO).when(request(HELLO), faulty(HELLO), request(HELLO))
        assert [type(outcome) for outcome in story.outcomes] == [Outcome, CommandFailed, Outcome]
        assert [recorded.type for recorded in story.recorded] == ["message_sent", "message_sent"]

    def test_leave_no_trace_of_their_command(self) -> None:
        claim = StartOperation(agent="bob", action="answer", resources={"emailId": "e-1"})
        story = given(ANN).when(faulty(claim))
        assert story.recorded == []
        assert story.squad.claims(("emailId", "e-1")) == ()
        assert story.squad.rows(AGENTS).get("bob") is None
        story.when(claim)
        assert story.outcome.refusal is None

    def test_leave_what_those_before_did_as_it_was(self) -> None:
        def use(tokens: int) -> RecordUsage:
            return RecordUsage(agent="ann", tokens=tokens)

        story = given(ANN).when(request(use(10)), faulty(use(500)), request(use(1)))
        assert story.squad.day is not None
        assert story.squad.day.used == 11

    def test_do_not_use_a_key_up(self) -> None:
        story = given(ANN).when(faulty(HELLO)).when(request(HELLO, "faulty"))
        assert story.outcome.repeated is None
        assert story.recorded[-1].type == "request_answered"

    def test_do_not_undo_what_the_passing_of_time_brought(self) -> None:
        story = given(StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}))
        story.when(faulty(HELLO), at=60)
        assert [recorded.type for recorded in story.recorded] == ["operation_expired"]
        assert story.row(AGENTS, "ann").operations == 0


class TestAbandonedBatch:
    def test_is_fenced_off_before_anything_else(self) -> None:
        story = given()
        lost = story.decide([request(HELLO)])
        story.decide([request(HELLO)], at=1, abandoned=lost)
        assert story.events[0] == AppendAbandoned(
            first_event_id=lost.recorded[0].id, events=len(lost.recorded)
        )
        assert story.recorded[0].actor == "system:writer"

    def test_is_fenced_off_even_where_the_next_command_fails(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL, logger="service.writing.batch")
        story = given(ANN)
        lost = story.decide([request(HELLO)])
        story.decide([faulty(HELLO), request(HELLO)], abandoned=lost)
        assert [recorded.type for recorded in story.recorded] == ["append_abandoned", "message_sent"]
        assert [recorded.position for recorded in story.log] == list(range(1, len(story.log) + 1))

    def test_and_another_one_later_have_a_stream_each(self) -> None:
        story = given(ANN)
        for _ in range(3):
            lost = story.decide([request(HELLO)])
            story.decide([request(PassTime())], abandoned=lost)
        fences = [recorded for recorded in story.log if recorded.type == "append_abandoned"]
        assert len({(recorded.stream, recorded.version) for recorded in fences}) == 3


class TestTheSizeOfABatch:
    def test_is_that_of_what_its_events_hold(self) -> None:
        batch = given().decide([request(HELLO), request(HELLO, "k")])
        assert batch.size == sum(len(recorded.data) for recorded in batch.recorded) > 0
        assert not batch.is_full

    def test_is_that_of_both_where_more_is_decided_above_it(self) -> None:
        story = given()
        one, other = story.decide([request(HELLO)]), story.decide([request(HELLO, "k")])
        size = one.size + other.size
        both = one.followed_by(other)
        assert (both.size, len(both.tickets), len(both.outcomes)) == (size, 2, 2)
        assert len(both.recorded) == len(both.events)

    def test_leaves_out_what_there_is_no_room_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_BATCH_BYTES", 1)
        batch = given(ANN).given(HELLO).decide([request(HELLO)] * 3)
        assert (len(batch.tickets), len(batch.outcomes), len(batch.recorded)) == (1, 1, 1)
        assert batch.size == len(batch.recorded[0].data)
        assert batch.is_full

    def test_counts_events_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_BATCH_EVENTS", 2)
        batch = given(ANN).given(HELLO).decide([request(HELLO)] * 3)
        assert len(batch.tickets) == 2
        assert batch.is_full

    def test_is_enough_for_one_command_whatever_comes_before_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise nobody would be answered as long as the passing of time fills each batch."""
        monkeypatch.setattr(module, "MAX_BATCH_EVENTS", 1)
        story = given(ANN)
        lost = story.decide([request(HELLO)])
        batch = story.decide([request(HELLO)] * 2, abandoned=lost)
        assert (len(batch.tickets), len(batch.outcomes)) == (1, 1)
        assert [recorded.type for recorded in batch.recorded] == ["append_abandoned", "message_sent"]


def test_an_event_of_what_must_be_in_memory_and_is_not_stops_the_fold() -> None:
    with pytest.raises(MissingRow):
        given(AgentHeartbeatRecorded(agent="nobody"))


def test_a_command_before_the_first_policy_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="service.writing.batch")
    story = Story().when(StartOperation(agent="ann", action="answer", resources={"k": "v"}), SetPolicy())
    assert [type(outcome) for outcome in story.outcomes] == [CommandFailed, Outcome]
    assert story.squad.has_policy

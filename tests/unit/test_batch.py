"""How a batch is decided: idempotency keys, failing commands, abandoned batches, and the size limits."""

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
from tests.unit.stories import UNKNOWN_ID, Story, given

if TYPE_CHECKING:
    from collections.abc import Callable

ANN = RegisterAgent(name="ann", role="agent")
HELLO = SendMessage(from_agent="ann", message="hello")


def render(outcome: Outcome) -> Answer:
    if outcome.refusal:
        return Answer(429, {"code": outcome.refusal.code})
    return Answer(201, {"id": outcome.reply["id"]})


def fail_to_render(outcome: Outcome) -> Answer:
    raise RuntimeError(f"cannot render {outcome.position}")


def request(
    command: AnyCommand,
    key: str | None = None,
    fingerprint: str = "POST /somewhere",
    answer: Callable[[Outcome], Answer] = render,
) -> Request:
    return Request(command, "agent:ann", f"request {key}", key, fingerprint, answer)


def http_batch(key: str, *commands: AnyCommand) -> list[Request]:
    """The requests of an HTTP batch with this idempotency key."""
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
    return request(command, "faulty", answer=fail_to_render)


class TestEnvelopes:
    def test_all_events_of_a_request_have_its_actor_and_correlation_id(self) -> None:
        story = given().when(request(HELLO), request(HELLO, "k"))
        assert [(recorded.actor, recorded.correlation_id) for recorded in story.recorded] == [
            ("agent:ann", "request None"),
            ("agent:ann", "request None"),
            ("agent:ann", "request k"),
            ("agent:ann", "request k"),
        ]

    def test_all_events_of_a_batch_have_the_same_time(self) -> None:
        story = given().when(HELLO, HELLO, at=5)
        assert {recorded.recorded_at for recorded in story.recorded} == {story.now}


class TestIdempotency:
    def test_first_answer_is_recorded(self) -> None:
        story = given(ANN).given(HELLO).when(request(HELLO, "k"))
        sent, answered = story.events
        assert isinstance(sent, MessageSent)
        assert answered == RequestAnswered(
            key="k", fingerprint="POST /somewhere", status=201, body={"id": story.id}
        )
        assert story.recorded[1].idempotency_key == "k"
        assert story.recorded[0].idempotency_key is None
        assert story.recorded[1].caused_by == story.recorded[0].position

    def test_repeat_gets_the_first_answer(self) -> None:
        story = given().when(request(HELLO, "k"))
        first = story.id
        story.when(request(HELLO, "k"), at=3600).then_nothing()
        assert story.outcome.repeated == Answer(201, {"id": first})

    def test_repeat_in_the_same_batch_gets_the_first_answer(self) -> None:
        story = given(ANN).given(HELLO).when(request(HELLO, "k"), request(HELLO, "k"))
        assert [recorded.type for recorded in story.recorded] == ["message_sent", "request_answered"]
        first, second = story.outcomes
        assert isinstance(first, Outcome)
        assert isinstance(second, Outcome)
        assert second.repeated == Answer(201, {"id": first.reply["id"]})

    def test_key_is_refused_for_another_request(self) -> None:
        story = given().when(request(HELLO, "k"))
        story.when(request(HELLO, "k", "POST /elsewhere")).then_refused("idempotency_mismatch")
        assert "'k'" in story.refusal.detail

    def test_key_of_an_http_batch_is_recorded_beside_those_of_its_commands(self) -> None:
        story = given(ANN).given(HELLO).when(*http_batch("k", HELLO, HELLO))
        kept = [event.key for event in story.events if isinstance(event, RequestAnswered)]
        assert kept == ["batch:0 k", "k", "batch:1 k"]
        story.when(*http_batch("k", HELLO, HELLO)).then_nothing()
        story.when(request(HELLO, "k")).then_refused("idempotency_mismatch")

    def test_http_batch_is_refused_when_another_request_used_its_key_first(self) -> None:
        story = given(ANN).when(request(HELLO, "k"), *http_batch("k", HELLO))
        assert isinstance(outcome := story.outcomes[1], Outcome)
        assert outcome.refusal
        assert outcome.refusal.code == "idempotency_mismatch"
        assert "'k'" in outcome.refusal.detail
        assert sum(isinstance(event, MessageSent) for event in story.events) == 1

    def test_recorded_refusal_is_repeated(self) -> None:
        too_much = ReserveTokens(agent="ann", tokens=10)
        story = given(policy=SetPolicy(daily_tokens=1)).when(request(too_much, "k"))
        assert [recorded.type for recorded in story.recorded][-2:] == ["tokens_denied", "request_answered"]
        story.when(request(too_much, "k")).then_nothing()
        assert story.outcome.repeated == Answer(429, {"code": "budget_exhausted"})

    def test_refusal_without_an_event_is_not_kept(self) -> None:
        finish = FinishOperation(operation_id=UNKNOWN_ID, outcome="failed")
        story = given()
        for _ in range(2):
            story.when(request(finish, "k")).then_refused("operation_not_found")
            assert (story.outcome.position, story.outcome.repeated) == (None, None)


class TestFailingCommand:
    @pytest.fixture(autouse=True)
    def _quiet(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL, logger="service.writing.batch")

    def test_does_not_affect_other_commands(self) -> None:
        story = given(ANN).given(HELLO).when(request(HELLO), faulty(HELLO), request(HELLO))
        assert [type(outcome) for outcome in story.outcomes] == [Outcome, CommandFailed, Outcome]
        assert [recorded.type for recorded in story.recorded] == ["message_sent", "message_sent"]

    def test_leaves_no_trace(self) -> None:
        claim = StartOperation(agent="bob", action="answer", resources={"emailId": "e-1"})
        story = given(ANN).when(faulty(claim))
        assert story.recorded == []
        assert story.squad.claims(("emailId", "e-1")) == ()
        assert story.squad.rows(AGENTS).get("bob") is None
        story.when(claim)
        assert story.outcome.refusal is None

    def test_does_not_undo_earlier_commands(self) -> None:
        def use(tokens: int) -> RecordUsage:
            return RecordUsage(agent="ann", tokens=tokens)

        story = given(ANN).when(request(use(10)), faulty(use(500)), request(use(1)))
        assert story.squad.day is not None
        assert story.squad.day.used == 11

    def test_does_not_use_up_its_idempotency_key(self) -> None:
        story = given(ANN).when(faulty(HELLO)).when(request(HELLO, "faulty"))
        assert story.outcome.repeated is None
        assert story.recorded[-1].type == "request_answered"

    def test_does_not_undo_expiries(self) -> None:
        story = given(StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}))
        story.when(faulty(HELLO), at=60)
        assert [recorded.type for recorded in story.recorded] == ["operation_expired"]
        assert story.row(AGENTS, "ann").operations == 0


class TestAbandonedBatch:
    def test_is_fenced_off_before_anything_else_is_recorded(self) -> None:
        story = given()
        lost = story.decide([request(HELLO)])
        story.decide([request(HELLO)], at=1, abandoned=lost)
        assert story.events[0] == AppendAbandoned(
            first_event_id=lost.recorded[0].id, events=len(lost.recorded)
        )
        assert story.recorded[0].actor == "system:writer"

    def test_is_fenced_off_even_when_the_next_command_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL, logger="service.writing.batch")
        story = given(ANN)
        lost = story.decide([request(HELLO)])
        story.decide([faulty(HELLO), request(HELLO)], abandoned=lost)
        assert [recorded.type for recorded in story.recorded] == ["append_abandoned", "message_sent"]
        assert [recorded.position for recorded in story.log] == list(range(1, len(story.log) + 1))

    def test_fences_of_several_abandoned_batches_do_not_collide(self) -> None:
        story = given(ANN)
        for _ in range(3):
            lost = story.decide([request(HELLO)])
            story.decide([request(PassTime())], abandoned=lost)
        fences = [recorded for recorded in story.log if recorded.type == "append_abandoned"]
        assert len({(recorded.stream, recorded.version) for recorded in fences}) == 3


class TestBatchSize:
    def test_size_is_the_length_of_the_event_data(self) -> None:
        batch = given().decide([request(HELLO), request(HELLO, "k")])
        assert batch.size == sum(len(recorded.data) for recorded in batch.recorded) > 0
        assert not batch.is_full

    def test_sizes_of_joined_batches_are_added(self) -> None:
        story = given()
        one, other = story.decide([request(HELLO)]), story.decide([request(HELLO, "k")])
        size = one.size + other.size
        both = one.followed_by(other)
        assert (both.size, len(both.tickets), len(both.outcomes)) == (size, 2, 2)
        assert len(both.recorded) == len(both.events)

    def test_batch_is_full_at_its_maximum_number_of_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_BATCH_BYTES", 1)
        batch = given(ANN).given(HELLO).decide([request(HELLO)] * 3)
        assert (len(batch.tickets), len(batch.outcomes), len(batch.recorded)) == (1, 1, 1)
        assert batch.size == len(batch.recorded[0].data)
        assert batch.is_full

    def test_batch_is_full_at_its_maximum_number_of_events(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_BATCH_EVENTS", 2)
        batch = given(ANN).given(HELLO).decide([request(HELLO)] * 3)
        assert len(batch.tickets) == 2
        assert batch.is_full

    def test_batch_decides_one_command_even_if_it_is_full_already(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise nobody would be answered while expiries fill every batch."""
        monkeypatch.setattr(module, "MAX_BATCH_EVENTS", 1)
        story = given(ANN)
        lost = story.decide([request(HELLO)])
        batch = story.decide([request(HELLO)] * 2, abandoned=lost)
        assert (len(batch.tickets), len(batch.outcomes)) == (1, 1)
        assert [recorded.type for recorded in batch.recorded] == ["append_abandoned", "message_sent"]


def test_fold_stops_at_an_event_whose_row_is_missing() -> None:
    with pytest.raises(MissingRow):
        given(AgentHeartbeatRecorded(agent="nobody"))


def test_command_before_the_first_policy_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="service.writing.batch")
    story = Story().when(StartOperation(agent="ann", action="answer", resources={"k": "v"}), SetPolicy())
    assert [type(outcome) for outcome in story.outcomes] == [CommandFailed, Outcome]
    assert story.squad.has_policy

"""Which caller may send which command, decided on the same state as the command itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest

from eventstore.events import (
    AccessDenied,
    EmailStatus,
    KeyCreated,
    KeyScope,
    MessageSent,
    OperationFinished,
    TaskStatus,
)
from service import commands as do
from service.callers import ANYBODY, Caller
from service.commands import AnyCommand
from service.decide.access import _AGENT_CHECKS
from service.requests import Answer, Request
from tests.unit.stories import Story, given
from tests.unit.test_commands import REQUIRED_VALUES

if TYPE_CHECKING:
    from service.requests import Outcome

ANN_KEY, BOB_KEY, OPERATOR_KEY, AUDITOR_KEY = "2222222222", "3333333333", "4444444444", "5555555555"
ANN, BOB = Caller("agent", ANN_KEY, "ann"), Caller("agent", BOB_KEY, "bob")
OPERATOR, AUDITOR = Caller("operator", OPERATOR_KEY), Caller("auditor", AUDITOR_KEY)
DAY_SECONDS = 86_400.0

KINDS: list[type[AnyCommand]] = sorted(get_args(AnyCommand), key=lambda kind: str(kind))


def key(key_id: str, scope: KeyScope, agent: str | None = None, **fields: Any) -> do.CreateKey:
    return do.CreateKey(key_id=key_id, digest="0" * 64, scope=scope, for_agent=agent, **fields)


def a_squad(*steps: AnyCommand) -> Story:
    """A squad with keys of every scope, after these commands."""
    keys = (key(ANN_KEY, "agent", "ann"), key(BOB_KEY, "agent", "bob"))
    return given(*keys, key(OPERATOR_KEY, "operator"), key(AUDITOR_KEY, "auditor"), *steps)


def request(command: AnyCommand, caller: Caller, idempotency_key: str | None = None) -> Request:
    def answer(outcome: Outcome) -> Answer:
        return Answer(200, dict(outcome.reply))

    actor = caller.actor(command.acting_agent)
    return Request(command, actor, "a request", idempotency_key, "", answer, caller=caller)


def denied(story: Story) -> AccessDenied:
    """Return the denial, which is the only event that was recorded."""
    [event] = story.events
    assert isinstance(event, AccessDenied)
    return event


class TestAgentKey:
    def test_acts_as_its_agent(self) -> None:
        story = a_squad().when(request(do.SendMessage(from_agent="ann", message="hello"), ANN))
        assert story.outcome.refusal is None
        assert story.recorded[-1].actor == f"agent:ann key:{ANN_KEY}"

    @pytest.mark.parametrize(
        "command",
        [
            do.SendMessage(from_agent="bob", message="hello"),
            do.Heartbeat(agent="bob"),
            do.StartOperation(agent="bob", action="answer", resources={"emailId": "1"}),
            do.ReserveTokens(agent="bob", tokens=1),
            do.RecordUsage(agent="bob", tokens=1),
            do.AcknowledgeMessage(message_id="00000000-0000-7000-8000-000000000001", agent="bob"),
            do.RegisterAgent(name="bob", role="spy"),
            do.LogEmail(gmail_message_id="g", from_email="x@example.org", handled_by="bob"),
        ],
        ids=lambda command: type(command).__name__,
    )
    def test_cannot_act_as_another_agent(self, command: AnyCommand) -> None:
        story = a_squad(do.RegisterAgent(name="bob", role="agent")).when(request(command, ANN))
        assert story.refusal.code == "wrong_agent"
        event = denied(story)
        assert (event.key_id, event.agent, event.command) == (ANN_KEY, "ann", type(command).__name__)
        assert story.recorded[0].caused_by == next(
            recorded.position for recorded in story.log if recorded.stream == f"key-{ANN_KEY}"
        )

    @pytest.mark.parametrize(
        ("command", "detail"),
        [
            (do.SendMessage(from_agent="bob", message="hello"), "may act only as itself, not as 'bob'"),
            (do.RegisterAgent(name="bob", role="spy"), "may register only itself, not 'bob'"),
            (
                do.LogEmail(gmail_message_id="g", from_email="x@example.org", handled_by="bob"),
                "may handle e-mails only in its own name, not in that of 'bob'",
            ),
            (do.Heartbeat(agent="b" * 100), f"may act only as itself, not as '{'b' * 100}'"),
        ],
        ids=["act", "register", "handle", "long name"],
    )
    def test_denial_names_the_agent_that_it_wanted_to_be(self, command: AnyCommand, detail: str) -> None:
        story = a_squad().when(request(command, ANN))
        assert (
            story.refusal.detail == denied(story).detail == f"this is a key of 'ann', and an agent {detail}"
        )

    def test_gets_the_position_of_the_recorded_denial(self) -> None:
        story = a_squad().when(request(do.SendMessage(from_agent="bob", message="hello"), ANN))
        assert story.outcome.position == story.position_of(AccessDenied)
        unrecorded = request(do.SendMessage(from_agent="ann", message="hello"), ANYBODY)
        assert story.when(unrecorded).refusal.code == "unauthorized"
        assert story.outcome.position is None

    @pytest.mark.parametrize("finished", [False, True])
    def test_cannot_change_an_operation_of_another_agent(self, *, finished: bool) -> None:
        story = a_squad(do.StartOperation(agent="bob", action="answer", resources={"emailId": "1"}))
        operation_id = story.id
        if finished:
            story.given(do.FinishOperation(operation_id=operation_id, outcome="succeeded"))
        for command in (
            do.RenewOperation(operation_id=operation_id),
            do.FinishOperation(operation_id=operation_id, outcome="cancelled", tokens_used=1_000),
        ):
            story.when(request(command, ANN))
            assert story.refusal.code == "wrong_agent"
            denied(story)
        if not finished:
            story.when(request(do.FinishOperation(operation_id=operation_id, outcome="succeeded"), BOB))
            assert isinstance(story.events[-1], OperationFinished)

    @pytest.mark.parametrize("settled", [False, True])
    def test_cannot_change_a_reservation_of_another_agent(self, *, settled: bool) -> None:
        story = a_squad(do.ReserveTokens(agent="bob", tokens=10))
        reservation_id = story.id
        if settled:
            story.given(do.SettleReservation(reservation_id=reservation_id, tokens_used=5))
        for command in (
            do.SettleReservation(reservation_id=reservation_id, tokens_used=0),
            do.ReleaseReservation(reservation_id=reservation_id),
        ):
            story.when(request(command, ANN))
            assert story.refusal.code == "wrong_agent"

    @pytest.mark.parametrize("status", ["new", "completed"])
    def test_can_change_only_its_own_and_unassigned_tasks(self, status: TaskStatus) -> None:
        for assigned, code in ((None, None), ("ann", None), ("bob", "wrong_agent")):
            story = a_squad(do.CreateTask(title="look", assigned_agent=assigned, status=status))
            story.when(request(do.UpdateTask(task_id=story.id, description="seen"), ANN))
            refusal = story.outcome.refusal
            assert (refusal.code if refusal else None) == code

    def test_can_assign_its_task_to_another_agent(self) -> None:
        story = a_squad(do.CreateTask(title="look", assigned_agent="ann"))
        story.when(request(do.UpdateTask(task_id=story.id, assigned_agent="bob"), ANN))
        assert story.outcome.refusal is None

    @pytest.mark.parametrize("status", ["unread", "sent"])
    def test_can_change_only_its_own_and_unhandled_emails_and_only_in_its_name(
        self, status: EmailStatus
    ) -> None:
        for handled_by, wanted, code in (
            (None, "ann", None),
            ("ann", None, None),
            ("ann", "ann", None),
            ("bob", "ann", "wrong_agent"),
            ("bob", None, "wrong_agent"),
            ("ann", "bob", "wrong_agent"),
            (None, "bob", "wrong_agent"),
        ):
            story = a_squad(
                do.LogEmail(
                    gmail_message_id="g", from_email="x@example.org", handled_by=handled_by, status=status
                )
            )
            story.when(request(do.UpdateEmail(email_id=story.id, category="seen", handled_by=wanted), ANN))
            refusal = story.outcome.refusal
            assert (refusal.code if refusal else None) == code, (handled_by, wanted)

    def test_gets_not_found_for_what_does_not_exist(self) -> None:
        unknown = "ffffffff-ffff-7fff-bfff-ffffffffffff"
        for command, code in (
            (do.FinishOperation(operation_id=unknown, outcome="failed"), "operation_not_found"),
            (do.ReleaseReservation(reservation_id=unknown), "reservation_not_found"),
            (do.UpdateTask(task_id=unknown, title="t"), "task_not_found"),
            (do.UpdateEmail(email_id=unknown, category="c"), "email_not_found"),
        ):
            a_squad().when(request(command, ANN)).then_refused(code)

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in _AGENT_CHECKS])
    def test_cannot_send_operator_commands(self, kind: type[AnyCommand]) -> None:
        story = a_squad().when(request(kind.model_validate(REQUIRED_VALUES[kind]), ANN))
        assert story.refusal.code == "not_allowed"
        assert denied(story).code == "not_allowed"


class TestAuditorKey:
    @pytest.mark.parametrize("kind", KINDS)
    def test_cannot_send_any_command(self, kind: type[AnyCommand]) -> None:
        story = a_squad().when(request(kind.model_validate(REQUIRED_VALUES[kind]), AUDITOR))
        assert story.refusal.code == "not_allowed"
        denied(story)


class TestOperatorKey:
    def test_can_act_as_any_agent(self) -> None:
        story = a_squad().when(request(do.SendMessage(from_agent="bob", message="hello"), OPERATOR))
        assert isinstance(story.events[-1], MessageSent)
        assert story.recorded[-1].actor == f"operator key:{OPERATOR_KEY}"

    @pytest.mark.parametrize("kind", KINDS)
    def test_can_send_every_command(self, kind: type[AnyCommand]) -> None:
        story = a_squad().when(request(kind.model_validate(REQUIRED_VALUES[kind]), OPERATOR))
        assert not any(isinstance(event, AccessDenied) for event in story.events)


class TestInvalidKey:
    def test_revoked_key_is_rejected_within_the_same_batch(self) -> None:
        story = a_squad()
        message = do.SendMessage(from_agent="ann", message="hello")
        story.when(do.RevokeKey(key_id=ANN_KEY), request(message, ANN))
        assert story.refusal.code == "unauthorized"
        assert [recorded.type for recorded in story.recorded] == ["key_revoked"]

    def test_expired_key_is_rejected_from_its_expiry_on(self) -> None:
        story = given(key(ANN_KEY, "agent", "ann", expires_days=1))
        message = do.SendMessage(from_agent="ann", message="hello")
        story.when(request(message, ANN), at=DAY_SECONDS - 1)
        assert story.outcome.refusal is None
        story.when(request(message, ANN), at=DAY_SECONDS)
        story.then_refused("unauthorized")

    def test_expired_key_is_rejected_before_its_expiry_is_recorded(self) -> None:
        story = given(key(ANN_KEY, "agent", "ann", expires_days=1)).when(at=DAY_SECONDS - 0.1)
        story.when(request(do.SendMessage(from_agent="ann", message="hello"), ANN), at=DAY_SECONDS + 0.1)
        story.then_refused("unauthorized").then_clock_recorded()

    def test_revoked_key_does_not_get_an_earlier_answer_again(self) -> None:
        message = do.SendMessage(from_agent="ann", message="hello")
        story = a_squad().when(request(message, ANN, "key-1"))
        story.when(request(message, ANN, "key-1"))
        assert story.outcome.repeated is not None
        story.given(do.RevokeKey(key_id=ANN_KEY)).when(request(message, ANN, "key-1"))
        story.then_refused("unauthorized")

    def test_unknown_key_is_rejected(self) -> None:
        story = a_squad().when(request(do.StopOrchestrator(), Caller("operator", "9999999999")))
        story.then_refused("unauthorized")


class TestWithoutAKey:
    def test_everything_is_allowed_while_no_key_exists(self) -> None:
        story = given().when(request(do.SendMessage(from_agent="ann", message="hello"), ANYBODY))
        assert story.outcome.refusal is None
        assert story.recorded[-1].actor == "agent:ann"
        story.when(request(do.StopOrchestrator(), ANYBODY))
        assert story.recorded[-1].actor == "anonymous"

    def test_nothing_is_allowed_once_the_first_key_exists(self) -> None:
        message = do.SendMessage(from_agent="ann", message="hello")
        story = given().when(key(OPERATOR_KEY, "operator"), request(message, ANYBODY))
        assert story.refusal.code == "unauthorized"
        assert [type(event) for event in story.events] == [KeyCreated]

    def test_service_itself_needs_no_key(self) -> None:
        story = a_squad().when(do.StopOrchestrator())
        assert story.outcome.refusal is None


def test_denial_is_not_kept_as_the_answer_to_an_idempotency_key() -> None:
    message = do.SendMessage(from_agent="bob", message="hello")
    story = a_squad().when(request(message, ANN, "key-1"))
    denied(story)
    story.when(request(message, BOB, "key-1"))
    assert story.outcome.refusal is None
    assert story.outcome.repeated is None

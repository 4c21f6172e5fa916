"""Who may ask for what, decided on the very state that the command is decided on."""

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
from tests.unit.support import Story, given
from tests.unit.test_commands import GOOD

if TYPE_CHECKING:
    from service.requests import Outcome

ANNS, BOBS, OPERATORS, AUDITORS = "2222222222", "3333333333", "4444444444", "5555555555"
ANN, BOB = Caller("agent", ANNS, "ann"), Caller("agent", BOBS, "bob")
OPERATOR, AUDITOR = Caller("operator", OPERATORS), Caller("auditor", AUDITORS)
DAY_SECONDS = 86_400.0

KINDS: list[type[AnyCommand]] = sorted(get_args(AnyCommand), key=lambda kind: str(kind))


def key(key_id: str, scope: KeyScope, agent: str | None = None, **fields: Any) -> do.CreateKey:
    return do.CreateKey(key_id=key_id, digest="0" * 64, scope=scope, for_agent=agent, **fields)


def a_squad(*steps: AnyCommand) -> Story:
    """A squad with a key of each kind, in which these things happened."""
    keys = (key(ANNS, "agent", "ann"), key(BOBS, "agent", "bob"))
    return given(*keys, key(OPERATORS, "operator"), key(AUDITORS, "auditor"), *steps)


def asked(command: AnyCommand, caller: Caller, idempotency_key: str | None = None) -> Request:
    def answer(outcome: Outcome) -> Answer:
        return Answer(200, dict(outcome.reply))

    actor = caller.actor(command.acting_agent)
    return Request(command, actor, "a request", idempotency_key, "", answer, caller=caller)


def denied(story: Story) -> AccessDenied:
    """The only thing that was recorded."""
    [event] = story.events
    assert isinstance(event, AccessDenied)
    return event


class TestAnAgentsKey:
    def test_acts_as_its_agent(self) -> None:
        story = a_squad().when(asked(do.SendMessage(from_agent="ann", message="hello"), ANN))
        assert story.outcome.refusal is None
        assert story.recorded[-1].actor == f"agent:ann key:{ANNS}"

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
    def test_acts_as_nobody_else(self, command: AnyCommand) -> None:
        story = a_squad(do.RegisterAgent(name="bob", role="agent")).when(asked(command, ANN))
        assert story.refusal.code == "wrong_agent"
        event = denied(story)
        assert (event.key_id, event.agent, event.command) == (ANNS, "ann", type(command).__name__)
        assert story.recorded[0].caused_by == next(
            recorded.position for recorded in story.log if recorded.stream == f"key-{ANNS}"
        )

    def test_is_told_where_the_log_says_what_it_was_denied(self) -> None:
        story = a_squad().when(asked(do.SendMessage(from_agent="bob", message="hello"), ANN))
        assert story.outcome.position == story.position_of(AccessDenied)
        nothing_is_recorded = asked(do.SendMessage(from_agent="ann", message="hello"), ANYBODY)
        assert story.when(nothing_is_recorded).refusal.code == "unauthorized"
        assert story.outcome.position is None

    @pytest.mark.parametrize("finished", [False, True])
    def test_does_not_touch_anothers_operation_under_way_or_over(self, *, finished: bool) -> None:
        story = a_squad(do.StartOperation(agent="bob", action="answer", resources={"emailId": "1"}))
        operation_id = story.id
        if finished:
            story.given(do.FinishOperation(operation_id=operation_id, outcome="succeeded"))
        for command in (
            do.RenewOperation(operation_id=operation_id),
            do.FinishOperation(operation_id=operation_id, outcome="cancelled", tokens_used=1_000),
        ):
            story.when(asked(command, ANN))
            assert story.refusal.code == "wrong_agent"
            denied(story)
        if not finished:
            story.when(asked(do.FinishOperation(operation_id=operation_id, outcome="succeeded"), BOB))
            assert isinstance(story.events[-1], OperationFinished)

    @pytest.mark.parametrize("settled", [False, True])
    def test_does_not_touch_anothers_reservation(self, *, settled: bool) -> None:
        story = a_squad(do.ReserveTokens(agent="bob", tokens=10))
        reservation_id = story.id
        if settled:
            story.given(do.SettleReservation(reservation_id=reservation_id, tokens_used=5))
        for command in (
            do.SettleReservation(reservation_id=reservation_id, tokens_used=0),
            do.ReleaseReservation(reservation_id=reservation_id),
        ):
            story.when(asked(command, ANN))
            assert story.refusal.code == "wrong_agent"

    @pytest.mark.parametrize("status", ["new", "completed"])
    def test_changes_tasks_of_its_own_and_of_nobody(self, status: TaskStatus) -> None:
        for assigned, code in ((None, None), ("ann", None), ("bob", "wrong_agent")):
            story = a_squad(do.CreateTask(title="look", assigned_agent=assigned, status=status))
            story.when(asked(do.UpdateTask(task_id=story.id, description="seen"), ANN))
            refusal = story.outcome.refusal
            assert (refusal.code if refusal else None) == code

    def test_may_hand_its_task_to_another(self) -> None:
        story = a_squad(do.CreateTask(title="look", assigned_agent="ann"))
        story.when(asked(do.UpdateTask(task_id=story.id, assigned_agent="bob"), ANN))
        assert story.outcome.refusal is None

    @pytest.mark.parametrize("status", ["unread", "sent"])
    def test_changes_emails_of_its_own_and_of_nobody_in_no_other_name(self, status: EmailStatus) -> None:
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
            story.when(asked(do.UpdateEmail(email_id=story.id, category="seen", handled_by=wanted), ANN))
            refusal = story.outcome.refusal
            assert (refusal.code if refusal else None) == code, (handled_by, wanted)

    def test_what_does_not_exist_is_told_as_such(self) -> None:
        unknown = "ffffffff-ffff-7fff-bfff-ffffffffffff"
        for command, code in (
            (do.FinishOperation(operation_id=unknown, outcome="failed"), "operation_not_found"),
            (do.ReleaseReservation(reservation_id=unknown), "reservation_not_found"),
            (do.UpdateTask(task_id=unknown, title="t"), "task_not_found"),
            (do.UpdateEmail(email_id=unknown, category="c"), "email_not_found"),
        ):
            a_squad().when(asked(command, ANN)).then_refused(code)

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in _AGENT_CHECKS])
    def test_does_nothing_that_is_an_operators(self, kind: type[AnyCommand]) -> None:
        story = a_squad().when(asked(kind.model_validate(GOOD[kind]), ANN))
        assert story.refusal.code == "not_allowed"
        assert denied(story).code == "not_allowed"


class TestAnAuditorsKey:
    @pytest.mark.parametrize("kind", KINDS)
    def test_changes_nothing(self, kind: type[AnyCommand]) -> None:
        story = a_squad().when(asked(kind.model_validate(GOOD[kind]), AUDITOR))
        assert story.refusal.code == "not_allowed"
        denied(story)


class TestAnOperatorsKey:
    def test_acts_in_whoevers_name(self) -> None:
        story = a_squad().when(asked(do.SendMessage(from_agent="bob", message="hello"), OPERATOR))
        assert isinstance(story.events[-1], MessageSent)
        assert story.recorded[-1].actor == f"operator key:{OPERATORS}"

    @pytest.mark.parametrize("kind", KINDS)
    def test_may_ask_for_everything(self, kind: type[AnyCommand]) -> None:
        story = a_squad().when(asked(kind.model_validate(GOOD[kind]), OPERATOR))
        assert not any(isinstance(event, AccessDenied) for event in story.events)


class TestAKeyThatIsNoneAnyMore:
    def test_brings_about_nothing_from_the_moment_it_is_revoked(self) -> None:
        story = a_squad()
        message = do.SendMessage(from_agent="ann", message="hello")
        story.when(do.RevokeKey(key_id=ANNS), asked(message, ANN))
        assert story.refusal.code == "unauthorized"
        assert [recorded.type for recorded in story.recorded] == ["key_revoked"]

    def test_nor_from_the_moment_it_has_run_out(self) -> None:
        story = given(key(ANNS, "agent", "ann", expires_days=1))
        message = do.SendMessage(from_agent="ann", message="hello")
        story.when(asked(message, ANN), at=DAY_SECONDS - 1)
        assert story.outcome.refusal is None
        story.when(asked(message, ANN), at=DAY_SECONDS)
        story.then_refused("unauthorized")

    def test_also_where_the_clock_has_not_been_looked_at_since(self) -> None:
        story = given(key(ANNS, "agent", "ann", expires_days=1)).when(at=DAY_SECONDS - 0.1)
        story.when(asked(do.SendMessage(from_agent="ann", message="hello"), ANN), at=DAY_SECONDS + 0.1)
        story.then_refused("unauthorized").meanwhile()

    def test_does_not_get_an_earlier_answer_again_either(self) -> None:
        message = do.SendMessage(from_agent="ann", message="hello")
        story = a_squad().when(asked(message, ANN, "key-1"))
        story.when(asked(message, ANN, "key-1"))
        assert story.outcome.repeated is not None
        story.given(do.RevokeKey(key_id=ANNS)).when(asked(message, ANN, "key-1"))
        story.then_refused("unauthorized")

    def test_one_that_never_was(self) -> None:
        story = a_squad().when(asked(do.StopOrchestrator(), Caller("operator", "9999999999")))
        story.then_refused("unauthorized")


class TestWithoutAKey:
    def test_anybody_may_do_everything_where_there_is_none(self) -> None:
        story = given().when(asked(do.SendMessage(from_agent="ann", message="hello"), ANYBODY))
        assert story.outcome.refusal is None
        assert story.recorded[-1].actor == "agent:ann"
        story.when(asked(do.StopOrchestrator(), ANYBODY))
        assert story.recorded[-1].actor == "anonymous"

    def test_nobody_may_do_anything_from_the_first_one_on(self) -> None:
        message = do.SendMessage(from_agent="ann", message="hello")
        story = given().when(key(OPERATORS, "operator"), asked(message, ANYBODY))
        assert story.refusal.code == "unauthorized"
        assert [type(event) for event in story.events] == [KeyCreated]

    def test_the_service_itself_needs_none(self) -> None:
        story = a_squad().when(do.StopOrchestrator())
        assert story.outcome.refusal is None


def test_a_denial_is_kept_as_no_answer_to_an_idempotency_key() -> None:
    message = do.SendMessage(from_agent="bob", message="hello")
    story = a_squad().when(asked(message, ANN, "key-1"))
    denied(story)
    story.when(asked(message, BOB, "key-1"))
    assert story.outcome.refusal is None
    assert story.outcome.repeated is None

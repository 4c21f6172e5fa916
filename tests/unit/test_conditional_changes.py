"""Changes of tasks and e-mails on condition that nobody has changed them since they were read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from eventstore.events import (
    AccessDenied,
    EmailReceived,
    EmailUpdated,
    RequestAnswered,
    SubjectForgotten,
    TaskUpdated,
)
from service import commands as do
from service.callers import Caller
from service.requests import Answer, Request
from tests.unit.stories import Story, given

if TYPE_CHECKING:
    from service.requests import Outcome

ANNS, BOBS = "2222222222", "3333333333"
ANN, BOB = Caller("agent", ANNS, "ann"), Caller("agent", BOBS, "bob")
KEYS = [
    do.CreateKey(key_id=key_id, digest="0" * 64, scope="agent", for_agent=agent)
    for key_id, agent in ((ANNS, "ann"), (BOBS, "bob"))
]


class Subject(ABC):
    """A story about a task or an e-mail."""

    updated: type[TaskUpdated | EmailUpdated]

    def __init__(self, begun: do.AnyCommand) -> None:
        self.story = given(*KEYS, begun)
        self.id = self.story.id
        self.read_at = self.position

    @property
    def position(self) -> int:
        """What the last answer says."""
        assert self.story.outcome.position is not None
        return self.story.outcome.position

    @abstractmethod
    def change(self, **changes: Any) -> do.AnyCommand:
        """A change of these fields."""

    @abstractmethod
    def taken_by(self, agent: str, **condition: Any) -> do.AnyCommand:
        """The change that gives it to an agent."""


class Task(Subject):
    updated = TaskUpdated

    def __init__(self, **fields: Any) -> None:
        super().__init__(do.CreateTask(title="look", **fields))

    def change(self, **changes: Any) -> do.AnyCommand:
        return do.UpdateTask(task_id=self.id, **changes)

    def taken_by(self, agent: str, **condition: Any) -> do.AnyCommand:
        return self.change(assigned_agent=agent, status="in_progress", **condition)


class Email(Subject):
    updated = EmailUpdated

    def __init__(self, **fields: Any) -> None:
        super().__init__(do.LogEmail(gmail_message_id="g", from_email="c@example.org", **fields))

    def change(self, **changes: Any) -> do.AnyCommand:
        return do.UpdateEmail(email_id=self.id, **changes)

    def taken_by(self, agent: str, **condition: Any) -> do.AnyCommand:
        return self.change(handled_by=agent, status="classified", **condition)


@pytest.fixture(params=[Task, Email])
def free(request: pytest.FixtureRequest) -> Subject:
    """A task, or an e-mail, that nobody has taken."""
    subject: Subject = request.param()
    return subject


def by(caller: Caller, command: do.AnyCommand, key: str | None = None) -> Request:
    def answer(outcome: Outcome) -> Answer:
        return Answer(200, {"position": outcome.position})

    return Request(command, caller.actor(None), "a request", key, "", answer, caller=caller)


def then_changed(story: Story, current_position: int) -> None:
    """The last command was refused without an event, and the refusal says what to read next."""
    story.then_refused("changed")
    assert story.refusal.extra == {"current_position": current_position}
    assert story.refusal.detail.endswith(f"position {current_position}")
    assert story.outcome.position is None


def test_change_is_accepted_when_its_position_is_that_of_the_last_change(free: Subject) -> None:
    for agent in ("ann", "bob"):
        # The answer to each change has the position for the next one.
        free.story.when(free.taken_by(agent, if_position=free.position))
        assert [type(event) for event in free.story.events] == [free.updated]
        assert free.position == free.story.position_of(free.updated)


def test_change_is_refused_when_another_comes_first_in_the_same_batch(free: Subject) -> None:
    first, second = (free.taken_by(agent, if_position=free.read_at) for agent in ("ann", "bob"))
    free.story.when(first, second)
    assert [type(event) for event in free.story.events] == [free.updated]
    assert free.story.refusal.code == "changed"
    assert free.story.refusal.extra == {"current_position": free.story.position_of(free.updated)}


def test_same_change_is_refused_when_it_was_made_before(free: Subject) -> None:
    """Two processes of one agent want the same, and only one of them may believe that it was the first."""
    taken = free.taken_by("ann", if_position=free.read_at)
    free.story.given(taken)
    then_changed(free.story.when(taken), free.story.position_of(free.updated))


@pytest.mark.parametrize("offset", [-1, 1, 2**40])
def test_change_is_refused_when_its_position_was_never_that_of_a_change(free: Subject, offset: int) -> None:
    then_changed(free.story.when(free.taken_by("ann", if_position=free.read_at + offset)), free.read_at)


def test_change_to_what_it_is_changes_nothing_when_its_condition_holds(free: Subject) -> None:
    free.story.when(free.change(if_position=free.read_at)).then_nothing().then_replied(
        position=free.read_at
    )


@pytest.mark.parametrize("kind", [Task, Email])
def test_change_is_judged_by_the_log_when_the_row_has_left_memory(kind: type[Task | Email]) -> None:
    done = kind(status="completed" if kind is Task else "sent")
    reopened = done.taken_by("ann", if_position=done.read_at)
    done.story.given(reopened, done.change(status="completed" if kind is Task else "sent"))
    then_changed(done.story.when(reopened), done.story.position_of(done.updated))


def test_change_of_an_email_is_refused_when_its_sender_was_forgotten() -> None:
    logged = do.LogEmail(gmail_message_id="g", from_email="c@example.org", payload={"text": "angry"})
    story = given(logged, encrypt=True)
    email_id, read_at = story.id, story.position_of(EmailReceived)
    story.given(do.ForgetSubject(subject="c@example.org"))
    forgotten_at = story.position_of(SubjectForgotten)
    then_changed(
        story.when(do.UpdateEmail(email_id=email_id, payload={"draft": "Dear"}, if_position=read_at)),
        forgotten_at,
    )
    story.given(do.UpdateEmail(email_id=email_id, status="archived", if_position=forgotten_at))


def test_idempotency_key_gets_the_first_answer_again_when_the_change_was_made(free: Subject) -> None:
    request = by(ANN, free.taken_by("ann", if_position=free.read_at), "a key")
    free.story.when(request)
    taken_at = free.story.position_of(free.updated)
    free.story.when(request).then_nothing()
    assert free.story.outcome.repeated == Answer(200, {"position": taken_at})


def test_idempotency_key_is_not_used_up_when_the_change_is_refused(free: Subject) -> None:
    free.story.given(free.taken_by("ann"))
    taken_at = free.story.position_of(free.updated)
    late = by(ANN, free.taken_by("ann", if_position=free.read_at), "a key")
    then_changed(free.story.when(late), taken_at)
    again = by(ANN, free.change(status="completed" if isinstance(free, Task) else "sent"), "a key")
    free.story.when(again)
    assert free.story.outcome.repeated is None
    assert [type(event) for event in free.story.events] == [free.updated, RequestAnswered]


def test_agent_is_told_that_it_came_too_late_when_the_row_is_anothers_by_now(free: Subject) -> None:
    """It wanted what was free. That it lost is no attempt at what is another's."""
    free.story.given(free.taken_by("ann"))
    late = by(BOB, free.taken_by("bob", if_position=free.read_at))
    then_changed(free.story.when(late), free.story.position_of(free.updated))


def test_agent_is_denied_anothers_row_when_it_names_the_current_position(free: Subject) -> None:
    free.story.given(free.taken_by("ann"))
    taken_at = free.story.position_of(free.updated)
    free.story.when(by(BOB, free.taken_by("bob", if_position=taken_at)))
    assert free.story.refusal.code == "wrong_agent"
    assert [type(event) for event in free.story.events] == [AccessDenied]


def test_agent_is_denied_an_email_in_anothers_name_when_it_comes_too_late() -> None:
    email = Email()
    email.story.given(email.change(category="order"))
    email.story.when(by(BOB, email.change(handled_by="ann", if_position=email.read_at)))
    assert email.story.refusal.code == "wrong_agent"


@pytest.mark.parametrize("wrong", [None, 0, -1, 2**63, "5", 1.0, True])
def test_condition_is_not_valid_when_it_is_not_a_position(free: Subject, wrong: object) -> None:
    with pytest.raises(ValidationError):
        free.change(if_position=wrong)

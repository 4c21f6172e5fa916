"""Decisions about sending and acknowledging messages."""

from __future__ import annotations

from eventstore.events import AgentRegistered, MessageAcknowledged, MessageSent
from service.commands import AcknowledgeMessage, RegisterAgent, SendMessage
from tests.unit.stories import FRESH, UNKNOWN_ID, Story, given

ANN, BOB, EVE = (RegisterAgent(name=name, role="agent") for name in ("ann", "bob", "eve"))


def a_squad() -> Story:
    """Three registered agents, each of which has sent a message."""
    story = given(ANN, BOB, EVE)
    return story.given(*(SendMessage(from_agent=name, message="here") for name in ("ann", "bob", "eve")))


def acknowledge(story: Story, agent: str) -> AcknowledgeMessage:
    return AcknowledgeMessage(message_id=story.id, agent=agent)


class TestSending:
    def test_message_to_one_agent_is_recorded(self) -> None:
        story = a_squad().when(
            SendMessage(
                from_agent="ann", to_agent="bob", message="look", task_id="t-1", data={"emailId": "123"}
            )
        )
        story.then(
            MessageSent(
                message_id=FRESH,
                agent="ann",
                to_agent="bob",
                message="look",
                task_id="t-1",
                data={"emailId": "123"},
            )
        )
        assert story.recorded[0].stream == f"message-{story.id}"

    def test_message_without_recipient_goes_to_all(self) -> None:
        a_squad().when(SendMessage(from_agent="ann", message="look")).then(
            MessageSent(
                message_id=FRESH, agent="ann", to_agent=None, message="look", task_id=None, data=None
            )
        )

    def test_message_to_an_unknown_agent_does_not_register_it(self) -> None:
        story = a_squad().when(SendMessage(from_agent="ann", to_agent="zoe", message="welcome"))
        assert [recorded.type for recorded in story.recorded] == ["message_sent"]

    def test_sent_message_leaves_nothing_in_memory(self) -> None:
        story = a_squad()
        before = story.squad.versions.copy()
        story.when(SendMessage(from_agent="ann", message="look"))
        assert story.squad.versions == before


class TestAcknowledging:
    def test_acknowledgement_is_recorded_in_the_messages_stream(self) -> None:
        story = a_squad().given(SendMessage(from_agent="ann", to_agent="bob", message="look"))
        message = story.id
        sent_at = story.log[-1].position
        story.when(acknowledge(story, "bob"))
        story.then(MessageAcknowledged(message_id=message, agent="bob")).then_replied(
            id=message, agent="bob"
        )
        assert story.caused_by(MessageAcknowledged) == sent_at
        assert story.recorded[0].version == 2

    def test_second_acknowledgement_changes_nothing(self) -> None:
        story = a_squad().given(SendMessage(from_agent="ann", to_agent="bob", message="look"))
        command = acknowledge(story, "bob")
        story.given(command)
        story.when(command, at=60).then_nothing().then_replied(
            position=story.position_of(MessageAcknowledged)
        )

    def test_two_acknowledgements_in_one_batch_are_recorded_once(self) -> None:
        story = a_squad().given(SendMessage(from_agent="ann", to_agent="bob", message="look"))
        command = acknowledge(story, "bob")
        story.when(command, command)
        story.then(MessageAcknowledged(message_id=command.message_id, agent="bob"))

    def test_broadcast_is_acknowledged_by_each_agent_separately(self) -> None:
        story = a_squad().given(SendMessage(from_agent="ann", message="look"))
        by_bob, by_eve = acknowledge(story, "bob"), acknowledge(story, "eve")
        story.given(by_bob).when(by_eve)
        story.then(MessageAcknowledged(message_id=by_eve.message_id, agent="eve"))

    def test_acknowledgement_by_another_agent_than_the_recipient_is_refused(self) -> None:
        story = a_squad().given(SendMessage(from_agent="ann", to_agent="bob", message="look"))
        story.when(acknowledge(story, "eve")).then_refused("not_addressed")

    def test_acknowledgement_by_the_sender_is_refused(self) -> None:
        story = a_squad().given(SendMessage(from_agent="ann", to_agent="bob", message="look"))
        story.when(acknowledge(story, "ann")).then_refused("not_addressed")

    def test_acknowledgement_of_an_unknown_message_is_refused(self) -> None:
        command = AcknowledgeMessage(message_id=UNKNOWN_ID, agent="bob")
        a_squad().when(command).then_refused("message_not_found")

    def test_acknowledgement_registers_an_unknown_agent(self) -> None:
        story = a_squad().given(SendMessage(from_agent="ann", message="look"))
        message = story.id
        story.when(acknowledge(story, "zoe")).then(
            AgentRegistered(
                agent="zoe", agent_id=FRESH, role="unknown", url=None, priority=0, automatic=True
            ),
            MessageAcknowledged(message_id=message, agent="zoe"),
        )


def test_acknowledgement_says_that_it_is_a_repeat_when_the_agent_acknowledged_before() -> None:
    story = given(SendMessage(from_agent="ann", message="look"))
    command = acknowledge(story, "bob")
    story.when(command).then_replied(already_acknowledged=False)
    acknowledged_at = story.position_of(MessageAcknowledged)
    story.when(command).then_nothing()
    story.then_replied(already_acknowledged=True, position=acknowledged_at)


def test_acknowledgement_is_no_repeat_when_only_another_agent_acknowledged_before() -> None:
    story = given(SendMessage(from_agent="ann", message="look"))
    of_bob, of_eve = acknowledge(story, "bob"), acknowledge(story, "eve")
    story.given(of_bob).when(of_eve).then_replied(already_acknowledged=False)

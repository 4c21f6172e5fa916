"""Decisions about messages: sending them to one agent or all, and acknowledging them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.events import MessageAcknowledged, MessageSent
from eventstore.recorded import NewEvent
from projections.messages import ACKS, MESSAGES
from service.decide.agents import ensure_active
from service.decide.decision import Accepted, Decision, DecisionContext, Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from service.commands import AcknowledgeMessage, SendMessage
    from service.memory.state import State


def send(state: State, command: SendMessage, at: DecisionContext) -> Decision:
    """Send a message. An unknown sender is registered; the recipient need not exist yet."""
    message_id = at.new_id()
    sent = MessageSent(
        message_id=message_id,
        agent=command.from_agent,
        to_agent=command.to_agent,
        message=command.message,
        task_id=command.task_id,
        data=command.data,
    )
    return Accepted([*ensure_active(state, command.from_agent, at), NewEvent(sent)], {"id": message_id})


def acknowledge(state: State, command: AcknowledgeMessage, at: DecisionContext) -> Decision:
    """Remove a message from one agent's inbox. Repeating it changes nothing, and the reply says so."""
    message = state.rows(MESSAGES).get(command.message_id)
    if message is None:
        return Refused(Refusal("message_not_found", f"there is no message {command.message_id}"))
    if message.to_agent not in (None, command.agent):
        return Refused(
            Refusal(
                "not_addressed",
                f"message {message.id} was sent to {message.to_agent!r}, not {command.agent!r}",
            )
        )
    reply = {"id": message.id, "agent": command.agent}
    if earlier := state.rows(ACKS).get((message.id, command.agent)):
        return Accepted([], {**reply, "already_acknowledged": True, "position": earlier.position})
    acknowledged = MessageAcknowledged(message_id=message.id, agent=command.agent)
    return Accepted(
        [*ensure_active(state, command.agent, at), NewEvent(acknowledged, caused_by=message.position)],
        {**reply, "already_acknowledged": False},
    )

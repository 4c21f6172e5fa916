"""Decisions about the subjects of sealed payloads: is there a key to destroy, and what did it seal?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.events import SubjectForgotten
from eventstore.recorded import NewEvent
from service.decide.decision import Accepted, Decision, DecisionContext, Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from service.commands import ForgetSubject
    from service.memory.state import State

MAX_EMAILS = 5_000
"""How many e-mails one event may name."""


def forget(state: State, command: ForgetSubject, at: DecisionContext) -> Decision:
    """Destroy the subject's key. Repeating it is accepted for a message; a forgotten sender is unknown."""
    del at
    trace = state.trace(command.subject)
    messages = [trace.message] if trace.message else []
    reply = {"emails": len(trace.emails), "messages": len(messages), "in_plain": command.in_plain}
    if trace.key_id is None:
        if trace.forgotten_at:
            return Accepted([], {**reply, "position": trace.forgotten_at})
        return Refused(_nothing_to_destroy(command, in_plain=trace.in_plain))
    emails = list(trace.emails)
    parts = [emails[start : start + MAX_EMAILS] for start in range(0, len(emails), MAX_EMAILS)]
    events = [
        SubjectForgotten(key_id=trace.key_id, emails=part, messages=messages, in_plain=command.in_plain)
        for part in parts or [[]]
    ]
    return Accepted([NewEvent(event) for event in events], reply)


def _nothing_to_destroy(command: ForgetSubject, *, in_plain: bool) -> Refusal:
    """Return the refusal, without the subject's name: refusals appear in many places."""
    if in_plain:
        return Refusal(
            "subject_in_plain",
            "this message was logged before payloads were encrypted; the log keeps it in plain text",
            {"in_plain": 1},
        )
    if command.in_plain:
        count = "1 e-mail" if command.in_plain == 1 else f"{command.in_plain} e-mails"
        return Refusal(
            "subject_in_plain",
            f"what the log holds of this sender ({count}) was logged before payloads were encrypted;"
            " the log keeps it in plain text",
            {"in_plain": command.in_plain},
        )
    return Refusal("subject_not_found", "there is no such sender, and no message with that id")

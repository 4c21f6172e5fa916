"""Decisions about the e-mail log: each Gmail message is logged once, then updated by the agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from eventstore.events import ERASED, EmailReceived, EmailUpdated
from eventstore.recorded import NewEvent
from projections.emails import EMAILS
from service.decide.conditions import has_changed, refuse_changed
from service.decide.decision import Accepted, Decision, DecisionContext, Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from service.commands import LogEmail, UpdateEmail
    from service.memory.state import State

_FIXED_FIELDS = ("gmail_message_id", "from_email", "subject")
_FIELDS = ("category", "status", "handled_by", "payload")


def log(state: State, command: LogEmail, at: DecisionContext) -> Decision:
    """Log an e-mail, unless its Gmail message id is known."""
    if known := state.email_with(command.gmail_message_id):
        return Refused(
            Refusal(
                "email_exists",
                f"Gmail message {command.gmail_message_id!r} is already logged",
                {"email_id": known},
            )
        )
    email_id = at.new_id()
    fields = {name: getattr(command, name) for name in (*_FIXED_FIELDS, *_FIELDS)}
    reply = {"id": email_id, **fields, "created_at": at.now, "updated_at": at.now}
    return Accepted([NewEvent(EmailReceived(email_id=email_id, **fields))], reply)


def update(state: State, command: UpdateEmail, at: DecisionContext) -> Decision:
    """Change the named fields of an e-mail."""
    row = state.rows(EMAILS).get(command.email_id)
    if row is None:
        return Refused(Refusal("email_not_found", f"there is no e-mail {command.email_id}"))
    if has_changed(row, command):
        return refuse_changed("e-mail", row)
    if row.from_email == ERASED and command.changes.get("payload") is not None:
        # The new payload could never be forgotten: the sender it is about can no longer be named.
        return Refused(
            Refusal("email_erased", f"e-mail {row.id} was erased with its sender; it takes no payload")
        )
    before = {name: getattr(row, name) for name in _FIELDS}
    after = {**before, **command.changes}
    fixed = {name: getattr(row, name) for name in _FIXED_FIELDS}
    reply = {"id": row.id, **fixed, **after, "created_at": row.created_at}
    changed = [name for name in _FIELDS if not _same(after[name], before[name])]
    if not changed:
        return Accepted([], {**reply, "updated_at": row.updated_at, "position": row.position})
    updated = EmailUpdated(email_id=row.id, **after, changed=changed)
    return Accepted([NewEvent(updated, caused_by=row.position)], {**reply, "updated_at": at.now})


def _same(one: Any, other: Any) -> bool:
    """Whether the values are equal as JSON, where true is not 1 as it is in Python."""
    return one == other and _text(one) == _text(other)


def _text(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)

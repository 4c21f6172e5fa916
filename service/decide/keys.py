"""Decisions about API keys: creation, first use, expiry and revocation."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from eventstore.events import KeyCreated, KeyExpired, KeyFirstUsed, KeyRevoked
from eventstore.recorded import NewEvent
from projections.keys import KEYS
from service.decide.decision import Accepted, Decision, DecisionContext, Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from service.commands import CreateKey, NoteKeyUse, RevokeKey
    from service.memory.state import State

MAX_KEYS = 10_000
"""How many keys may be active at once: every process keeps all of them in memory."""


def create(state: State, command: CreateKey, at: DecisionContext) -> Decision:
    """Create a key. Its agent need not be registered yet: it may register itself with the key."""
    if state.rows(KEYS).get(command.key_id) is not None:
        return Refused(Refusal("key_exists", f"key {command.key_id} already exists"))
    if sum(row.state == "active" for row in state.all(KEYS)) >= MAX_KEYS:
        return Refused(Refusal("too_many_keys", f"{MAX_KEYS:,} keys are in use; revoke some of them"))
    days = command.expires_days
    created = KeyCreated(
        key_id=command.key_id,
        agent=command.for_agent,
        scope=command.scope,
        digest=command.digest,
        note=command.note,
        expires_at=None if days is None else at.now + timedelta(days=days),
    )
    reply = {
        "id": created.key_id,
        "scope": created.scope,
        "agent": created.agent,
        "note": created.note,
        "created_at": at.now,
        "expires_at": created.expires_at,
    }
    return Accepted([NewEvent(created)], reply)


def note_use(state: State, command: NoteKeyUse, at: DecisionContext) -> Decision:
    """Record the first use of a key. Every process that sees one reports it; only the first is recorded."""
    row = state.rows(KEYS).get(command.key_id)
    if row is None or row.state != "active":
        return Refused(not_found(command.key_id))
    reply = {"id": row.id}
    if row.first_used_at is not None:
        return Accepted([], {**reply, "first_used_at": row.first_used_at, "position": row.position})
    used = KeyFirstUsed(key_id=row.id, agent=row.agent)
    return Accepted([NewEvent(used, caused_by=row.position)], {**reply, "first_used_at": at.now})


def revoke(state: State, command: RevokeKey, at: DecisionContext) -> Decision:
    """Revoke a key, even one that has expired. Repeating it changes nothing."""
    row = state.rows(KEYS).get(command.key_id)
    if row is None:
        return Refused(not_found(command.key_id))
    reply = {"id": row.id, "scope": row.scope, "agent": row.agent, "note": row.note}
    if row.state == "revoked":
        return Accepted([], {**reply, "revoked_at": row.ended_at, "position": row.position})
    revoked = KeyRevoked(key_id=row.id, agent=row.agent)
    return Accepted([NewEvent(revoked, caused_by=row.position)], {**reply, "revoked_at": at.now})


def expired(state: State, now: datetime) -> Iterator[NewEvent]:
    """Yield the expiry of each key that is past its time."""
    for row in state.all(KEYS):
        if row.state == "active" and row.expires_at is not None and row.expires_at <= now:
            yield NewEvent(KeyExpired(key_id=row.id, agent=row.agent), caused_by=row.position)


def not_found(key_id: str) -> Refusal:
    """Return the refusal for a key that does not exist."""
    return Refusal("key_not_found", f"there is no key {key_id}")

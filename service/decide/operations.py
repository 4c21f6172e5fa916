"""Decisions about operations: two agents never hold the same claim.

An operation claims every resource it names. It blocks conflicting claims until its conflict window ends;
each heartbeat restarts the window. Without a heartbeat, the operation expires when its time to live ends.
Between the two it still exists but blocks nobody. A heartbeat can then revive it only if no operation that
is still active has claimed any of its resources since: such a one has the greater fencing token, and of two
holders the later must have it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore.events import (
    ConflictDetected,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
)
from eventstore.recorded import NewEvent
from projections.operations import OPERATIONS, OperationRow
from service.decide.budget import record_use
from service.decide.builder import DecisionBuilder
from service.decide.decision import Decision, DecisionContext, Refused
from service.refusals import Refusal
from service.values import MIN_WINDOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from projections.budgets import PolicyRow
    from service.commands import FinishOperation, RenewOperation, StartOperation
    from service.memory.draft import Draft
    from service.memory.state import State


class Conflict(NamedTuple):
    """The operation that blocks a claim, and the resources that both name."""

    holder: OperationRow
    contested: dict[str, str]


def renewal_seconds(policy: PolicyRow) -> float:
    """Return how often a claim is renewed: three times before its window ends or it expires.

    An old log may have a policy with times that are no longer allowed to be so short; those must not fill
    it with renewals.
    """
    shortest = min(policy.conflict_window_seconds, policy.operation_timeout_seconds)
    return max(shortest, MIN_WINDOW_SECONDS) / 3


def find_conflict(
    state: State,
    resources: Mapping[str, str],
    now: datetime,
    *,
    renewing: OperationRow | None = None,
) -> Conflict | None:
    """Return the conflict with the oldest operation that blocks a claim on these resources, if any.

    Args:
        state: the squad.
        resources: what is claimed.
        now: the time.
        renewing: the operation that claims them again; None for a new claim.
    """
    contested: dict[str, dict[str, str]] = {}
    for kind, value in resources.items():
        for operation_id in state.claims((kind, value)):
            contested.setdefault(operation_id, {})[kind] = value
    rows = state.rows(OPERATIONS)
    holders = [row for id_ in contested if (row := rows.get(id_)) and _blocks(row, now, renewing)]
    if not holders:
        return None
    holder = min(holders, key=lambda row: row.fencing_token)
    return Conflict(holder, contested[holder.id])


def describe(conflict: Conflict) -> dict[str, Any]:
    """Return a conflict as the API shows it. `position` is that of the blocking operation's start."""
    holder = conflict.holder
    return {
        "operation_id": holder.id,
        "agents": [holder.agent],
        "action": holder.action,
        "resources": holder.resources,
        "contested": conflict.contested,
        "started_at": holder.started_at,
        "blocks_until": holder.blocks_until,
        "expires_at": holder.expires_at,
        "position": holder.fencing_token,
    }


def start(draft: Draft, command: StartOperation, at: DecisionContext) -> Decision:
    """Start an operation, unless one of its resources is claimed."""
    builder = DecisionBuilder(draft, at)
    builder.ensure_active(command.agent, "operation_started")
    if conflict := find_conflict(draft, command.resources, at.now):
        builder.append(conflict_event(conflict, command.agent, command.action, command.resources, at))
        return builder.refuse(refusal_for(conflict, at.now))
    started = start_event(
        draft, command.agent, command.action, command.resources, at, ttl_seconds=command.ttl_seconds
    )
    reply = {
        "id": started.operation_id,
        "fencing_token": builder.add(started),
        "started_at": at.now,
        "blocks_until": started.blocks_until,
        "expires_at": started.expires_at,
    }
    return builder.accept(reply)


def renew(draft: Draft, command: RenewOperation, at: DecisionContext) -> Decision:
    """Restart the window and the time to live, unless another operation has claimed a resource since."""
    row = draft.rows(OPERATIONS).get(command.operation_id)
    if refusal := _refusal_if_ended(row, command.operation_id, at.now):
        return Refused(refusal)
    assert row is not None
    builder = DecisionBuilder(draft, at)
    builder.ensure_active(row.agent)
    if conflict := find_conflict(draft, row.resources, at.now, renewing=row):
        builder.append(conflict_event(conflict, row.agent, row.action, row.resources, at))
        return builder.refuse(refusal_for(conflict, at.now, renewing=row))
    renewed = renewal_event(draft, row, at.now)
    builder.add(renewed, caused_by=row.position)
    return builder.accept(
        {"id": row.id, "blocks_until": renewed.blocks_until, "expires_at": renewed.expires_at}
    )


def start_event(
    state: State,
    agent: str,
    action: str,
    resources: dict[str, str],
    at: DecisionContext,
    *,
    ttl_seconds: float | None = None,
) -> OperationStarted:
    """Return the event that starts a claim; its time to live defaults to the policy's."""
    policy = state.policy
    ttl_seconds = ttl_seconds or policy.operation_timeout_seconds
    return OperationStarted(
        operation_id=at.new_id(),
        agent=agent,
        action=action,
        resources=resources,
        ttl_seconds=ttl_seconds,
        blocks_until=_blocks_until(policy.conflict_window_seconds, ttl_seconds, at.now),
        expires_at=at.now + timedelta(seconds=ttl_seconds),
    )


def renewal_event(state: State, row: OperationRow, now: datetime) -> OperationRenewed:
    """Return the event that restarts a claim's window and time to live."""
    return OperationRenewed(
        operation_id=row.id,
        agent=row.agent,
        blocks_until=_blocks_until(state.policy.conflict_window_seconds, row.ttl_seconds, now),
        expires_at=now + timedelta(seconds=row.ttl_seconds),
    )


def finish(draft: Draft, command: FinishOperation, at: DecisionContext) -> Decision:
    """End an operation, and record the tokens it used."""
    row = draft.rows(OPERATIONS).get(command.operation_id)
    used = command.usage
    tokens = used.tokens_used if used else None
    if refusal := _refusal_if_ended(row, command.operation_id, at.now, tokens):
        return Refused(refusal)
    assert row is not None
    finished = OperationFinished(
        operation_id=row.id, agent=row.agent, outcome=command.outcome, tokens_used=tokens
    )
    builder = DecisionBuilder(draft, at)
    builder.ensure_active(row.agent)
    ended = builder.add(finished, caused_by=row.fencing_token)
    day = draft.day
    if used and tokens and day:
        record_use(builder, day, row.agent, used, operation_id=row.id, caused_by=ended)
    reply = {
        "id": row.id,
        "outcome": command.outcome,
        "tokens_used": tokens,
        "ended_at": at.now,
    }
    return builder.accept(reply)


def expired(state: State, now: datetime) -> Iterator[NewEvent]:
    """Yield the expiry of each operation that was not renewed in time."""
    if now < state.no_expiry_before.get(OPERATIONS.name, now):
        return
    for row in state.expired(OPERATIONS.name, now):
        yield NewEvent(OperationExpired(operation_id=row.id, agent=row.agent), caused_by=row.position)


def _blocks(row: OperationRow, now: datetime, renewing: OperationRow | None) -> bool:
    if row.expires_at <= now or (renewing and row.id == renewing.id):
        return False
    is_newer = renewing is not None and row.fencing_token > renewing.fencing_token
    return row.blocks_until > now or is_newer


def _blocks_until(window_seconds: float, ttl_seconds: float, now: datetime) -> datetime:
    return now + timedelta(seconds=min(window_seconds, ttl_seconds))


def _refusal_if_ended(
    row: OperationRow | None, operation_id: str, now: datetime, tokens_used: int | None = None
) -> Refusal | None:
    if row is None:
        return Refusal("operation_not_found", f"there is no operation {operation_id}")
    if row.state == "finished":
        return Refusal(
            "operation_finished", f"operation {row.id} has already finished", {"outcome": row.outcome}
        )
    if row.state == "expired" or row.expires_at <= now:
        detail = f"operation {row.id} was not renewed in time; its claims are void"
        if tokens_used:
            detail += "; record what was spent with POST /api/v1/budget/usage"
        return Refusal("operation_expired", detail, {"expired_at": row.expires_at})
    return None


def conflict_event(
    conflict: Conflict, agent: str, action: str, resources: dict[str, str], at: DecisionContext
) -> NewEvent:
    """Return the event of a refused claim, caused by the one that blocks it."""
    holder = conflict.holder
    detected = ConflictDetected(
        operation_id=holder.id,
        conflict_id=at.new_id(),
        agent=agent,
        action=action,
        resources=resources,
        contested=conflict.contested,
        holders=[holder.agent],
        holder_action=holder.action,
    )
    return NewEvent(detected, caused_by=holder.fencing_token)


def refusal_for(conflict: Conflict, now: datetime, *, renewing: OperationRow | None = None) -> Refusal:
    """Return the refusal of a claim, or of a heartbeat that renews one.

    What blocks a heartbeat came later, and blocks it until it expires. Usually the late claim has itself
    expired by then, so there is no moment to retry at.
    """
    detail = conflict_sentence(conflict)
    free_at = conflict.holder.expires_at if renewing else conflict.holder.blocks_until
    seconds = max(1, ceil((free_at - now).total_seconds()))
    is_lost = renewing is not None and now + timedelta(seconds=seconds) >= renewing.expires_at
    if renewing:
        what_to_do = "is lost to that claim: stop" if is_lost else "must pause while that claim lasts"
        detail += f"; operation {renewing.id}, renewed too late, {what_to_do}, or start a new one"
    extra = {"conflict": describe(conflict)}
    return Refusal("conflict", detail, extra, retry_after_seconds=None if is_lost else seconds)


def conflict_sentence(conflict: Conflict) -> str:
    """Return who has claimed what, as a sentence."""
    contested = ", ".join(f"{kind} {value}" for kind, value in conflict.contested.items())
    return f"{conflict.holder.agent!r} has claimed {contested} for {conflict.holder.action!r}"

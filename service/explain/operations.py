"""Why a claim was refused, and how claims ended."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from eventstore.events import (
    ConflictDetected,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
)
from service.explain import words
from service.explain.narration import place, rules_at
from service.explain.sentences import dated

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.recorded import Recorded
    from service.explain.narration import Narration
    from service.explain.record import LoggedEvent, LogQueries

MAX_SCANNED_EVENTS = 1_000
"""How many heartbeats of the blocking claim are searched for a gap between them."""

_ENDS = (OperationFinished.type, OperationExpired.type)


async def conflict_detected(
    event: ConflictDetected, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """The blocking claim: who held it, since when, until when it blocked, and how it ended."""
    stream = f"operation-{event.operation_id}"
    start = await past.first(stream, (OperationStarted.type,))
    if start is None or not isinstance(start.event, OperationStarted):
        return
    holder, claim = start.event.agent, start.event
    narration.add_reason(
        f"{holder} had claimed {words.resources(claim.resources)} for {words.quote(claim.action)}"
        f" {words.at(start.at)}, {words.duration(at.recorded_at - start.at.recorded_at)} earlier.",
        start.at,
    )
    last: OperationStarted | OperationRenewed = claim
    renewal = await past.last(stream, (OperationRenewed.type,), upto=at.position)
    if renewal and isinstance(renewal.event, OperationRenewed):
        last = renewal.event
        narration.add_reason(f"{holder} had last renewed that claim {words.at(renewal.at)}.", renewal.at)
    _explain_block(event, at, last, narration)
    if rules := await rules_at(past, (renewal or start).at.position):
        window_seconds = rules.policy.conflict_window_seconds
        if claim.ttl_seconds < window_seconds:
            ttl = words.seconds(claim.ttl_seconds)
            narration.add_reason(
                f"Without a heartbeat, that claim blocks others for {ttl}, and then expires.", start.at
            )
        else:
            narration.add_reason(
                f"Without a heartbeat, a claim blocks others for {words.seconds(window_seconds)}, under the"
                f" rules {rules.since}.",
                rules.at,
            )
        narration.facts["policy"] = rules.facts("conflict_window_seconds", "operation_timeout_seconds")
    narration.facts["holder"] = {
        "operation_id": event.operation_id,
        "agent": holder,
        "action": claim.action,
        "resources": claim.resources,
        "started_at": start.at.recorded_at,
        "position": start.at.position,
        "last_renewed_at": renewal.at.recorded_at if renewal else None,
        "blocked_until": last.blocks_until,
        "expires_at": last.expires_at,
    }
    narration.facts["contested"] = event.contested
    await _explain_end(stream, at, holder, last, past, narration)


def _explain_block(
    event: ConflictDetected, at: Recorded, last: OperationStarted | OperationRenewed, narration: Narration
) -> None:
    left = last.blocks_until - at.recorded_at
    until = words.moment(last.blocks_until)
    if left > timedelta(0):
        narration.add_reason(
            f"At that time, the claim blocked others until {until}, {words.duration(left)} later.",
            at,
        )
    else:
        narration.add_reason(
            f"It had stopped blocking others at {until}, but it was newer than the claim that {event.agent}"
            " tried to renew, and the older claim has to give way.",
            at,
        )


async def _explain_end(
    stream: str,
    at: Recorded,
    holder: str,
    last: OperationStarted | OperationRenewed,
    past: LogQueries,
    narration: Narration,
) -> None:
    # A heartbeat gives way to a newer claim until that one ends, whatever its conflict window.
    gives_way = last.blocks_until <= at.recorded_at
    end = await past.first(stream, _ENDS, after=at.position)
    renewals = await past.earliest(stream, MAX_SCANNED_EVENTS, (OperationRenewed.type,), after=at.position)
    latest: LoggedEvent | None = None
    for renewal in renewals:
        if not gives_way and last.blocks_until <= renewal.at.recorded_at:
            _explain_gap(at, holder, last, latest, renewal, narration)
            if end:
                narration.add_reason(dated(end), end.at)
                narration.facts["ended"] = {"type": end.at.type, **place(end)}
            return
        if isinstance(renewal.event, OperationRenewed):
            last, latest = renewal.event, renewal
    is_all = len(renewals) < MAX_SCANNED_EVENTS
    if not is_all:
        latest = await past.last(stream, (OperationRenewed.type,), upto=2**62)
        if latest and isinstance(latest.event, OperationRenewed):
            last = latest.event
    if latest:
        narration.add_reason(f"{holder} renewed it again, most recently {words.at(latest.at)}.", latest.at)
    over_at = last.expires_at if gives_way else last.blocks_until
    if end is None:
        until = words.moment(over_at)
        narration.add_reason(
            f"It had not ended by the end of the log; without a heartbeat it blocks until {until}."
        )
        narration.facts["free_at"] = None
        return
    free_at = min(end.at.recorded_at, over_at)
    narration.facts["free_at"] = free_at if is_all else None
    narration.facts["ended"] = {"type": end.at.type, **place(end)}
    after = f"{'' if is_all else 'at the latest '}{_after(free_at, at)}"
    if isinstance(end.event, OperationFinished):
        narration.add_reason(
            f"{holder} finished it as {end.event.outcome} {words.at(end.at)}; the contested resources were"
            f" free {after}.",
            end.at,
        )
    else:
        narration.add_reason(
            f"It expired {words.at(end.at)}; the contested resources were free {after}.", end.at
        )


def _explain_gap(
    at: Recorded,
    holder: str,
    last: OperationStarted | OperationRenewed,
    before: LoggedEvent | None,
    renewal: LoggedEvent,
    narration: Narration,
) -> None:
    """Say when its window ended: after the heartbeat `before`, if any, and before `renewal`."""
    when = f"{holder} renewed it only"
    if before:
        narration.add_reason(f"{holder} last renewed it in time {words.at(before.at)}.", before.at)
        when = "The next renewal came only"
    narration.add_reason(
        f"{when} {words.at(renewal.at)}; the contested resources had become free before that,"
        f" {_after(last.blocks_until, at)}.",
        renewal.at,
    )
    narration.facts["free_at"] = last.blocks_until


def _after(free_at: datetime, at: Recorded) -> str:
    waited = free_at - at.recorded_at
    if waited <= timedelta(0):
        return "immediately"
    return f"{words.duration(waited)} after the refusal, at {words.moment(free_at)}"


async def started(event: OperationStarted, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """The rules by which the claim blocks, and how it ended."""
    await _explain_blocking(event, at, past, narration)
    narration.add_outcome(*await _end(event, at, past))


async def blocking(event: OperationStarted, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """Like `started`, for a claim that is the cause of the explained event."""
    await _explain_blocking(event, at, past, narration)
    narration.add_reason(*await _end(event, at, past))


async def _explain_blocking(
    event: OperationStarted, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    if rules := await rules_at(past, at.position):
        window = words.seconds(min(rules.policy.conflict_window_seconds, event.ttl_seconds))
        is_own = event.ttl_seconds != rules.policy.operation_timeout_seconds
        narration.add_reason(
            f"It blocks others for {window} from its start and from each heartbeat, and expires"
            f" {words.seconds(event.ttl_seconds)} after the last of them, according to"
            f" {'its own time to live and ' if is_own else ''}the rules {rules.since}.",
            rules.at,
        )
        narration.facts["policy"] = rules.facts("conflict_window_seconds", "operation_timeout_seconds")
    narration.facts["resources"] = event.resources


async def _end(
    event: OperationStarted, at: Recorded, past: LogQueries
) -> tuple[str, *tuple[Recorded, ...]]:
    """How a claim ended, and the event that shows it."""
    end = await past.first(at.stream, _ENDS, after=at.position)
    if end is None:
        return ("It had not ended by the end of the log.",)
    if isinstance(end.event, OperationFinished):
        return f"{event.agent} finished it as {end.event.outcome} {words.at(end.at)}.", end.at
    return f"It expired {words.at(end.at)}.", end.at


async def continued(
    event: OperationRenewed | OperationFinished, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """The claim that it belongs to."""
    if start := await _start(at, past):
        claim, begun = start.event, start.at
        if isinstance(claim, OperationStarted):
            narration.add_reason(
                f"{event.agent} had claimed {words.resources(claim.resources)} for"
                f" {words.quote(claim.action)} {words.at(begun)}.",
                begun,
            )
            narration.facts["resources"] = claim.resources


async def expired(event: OperationExpired, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """Who held the operation, its last heartbeat, and its time to live."""
    start = await _start(at, past)
    if start is None or not isinstance(start.event, OperationStarted):
        return
    claim = start.event
    narration.add_reason(
        f"{event.agent} had claimed {words.resources(claim.resources)} for {words.quote(claim.action)}"
        f" {words.at(start.at)}.",
        start.at,
    )
    last: OperationStarted | OperationRenewed = claim
    renewal = await past.last(at.stream, (OperationRenewed.type,), upto=at.position)
    if renewal and isinstance(renewal.event, OperationRenewed):
        last = renewal.event
        narration.add_reason(f"{event.agent} last renewed that claim {words.at(renewal.at)}.", renewal.at)
    else:
        narration.add_reason(f"{event.agent} never renewed that claim.", start.at)
    narration.add_reason(
        f"Without another renewal it was due to expire after {words.seconds(claim.ttl_seconds)}, at"
        f" {words.moment(last.expires_at)}.",
        (renewal or start).at,
    )
    narration.facts |= {
        "agent": event.agent,
        "action": claim.action,
        "resources": claim.resources,
        "started_at": start.at.recorded_at,
        "last_renewed_at": renewal.at.recorded_at if renewal else None,
        "ttl_seconds": claim.ttl_seconds,
        "due_at": last.expires_at,
    }


async def _start(at: Recorded, past: LogQueries) -> LoggedEvent | None:
    return await past.first(at.stream, (OperationStarted.type,))

"""Why a claim was refused, and what became of claims."""

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
from service.explain.sentences import dated
from service.explain.telling import place, rules_at

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.recorded import Recorded
    from service.explain.record import Past, Told
    from service.explain.telling import Telling

_ENDS = (OperationFinished.type, OperationExpired.type)


async def turned_away(event: ConflictDetected, at: Recorded, past: Past, telling: Telling) -> None:
    """Which claim was in the way, by whom, since when, until when it blocked, and what became of it."""
    stream = f"operation-{event.operation_id}"
    start = await past.first(stream, (OperationStarted.type,))
    if start is None or not isinstance(start.event, OperationStarted):
        return
    holder, claim = start.event.agent, start.event
    telling.say(
        f"{holder} had claimed {words.resources(claim.resources)} for {words.quote(claim.action)}"
        f" {words.at(start.at)}, {words.duration(at.recorded_at - start.at.recorded_at)} before.",
        start.at,
    )
    last: OperationStarted | OperationRenewed = claim
    renewal = await past.last(stream, (OperationRenewed.type,), upto=at.position)
    if renewal and isinstance(renewal.event, OperationRenewed):
        last = renewal.event
        telling.say(f"{holder} had last renewed that claim {words.at(renewal.at)}.", renewal.at)
    _say_why_it_blocked(event, at, last, telling)
    if rules := await rules_at(past, (renewal or start).at.position):
        window_seconds = rules.policy.conflict_window_seconds
        if claim.ttl_seconds < window_seconds:
            ttl = words.seconds(claim.ttl_seconds)
            telling.say(
                f"Without a heartbeat that claim turns others away for {ttl}, and then expires.", start.at
            )
        else:
            telling.say(
                f"Without a heartbeat a claim turns others away for {words.seconds(window_seconds)}, by the"
                f" rules {rules.since}.",
                rules.at,
            )
        telling.facts["policy"] = rules.facts("conflict_window_seconds", "operation_timeout_seconds")
    telling.facts["holder"] = {
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
    telling.facts["contested"] = event.contested
    await _say_what_became_of_it(stream, at, holder, last, past, telling)


def _say_why_it_blocked(
    event: ConflictDetected, at: Recorded, last: OperationStarted | OperationRenewed, telling: Telling
) -> None:
    left = last.blocks_until - at.recorded_at
    until = words.moment(last.blocks_until)
    if left > timedelta(0):
        telling.say(
            f"As things stood then, that claim was to turn others away until {until},"
            f" {words.duration(left)} later.",
            at,
        )
    else:
        telling.say(
            f"Its time to turn others away was over since {until}, but it was made after the one that"
            f" {event.agent} wanted to renew, so that one had to give way.",
            at,
        )


async def _say_what_became_of_it(
    stream: str,
    at: Recorded,
    holder: str,
    last: OperationStarted | OperationRenewed,
    past: Past,
    telling: Telling,
) -> None:
    end = await past.first(stream, _ENDS, after=at.position)
    renewal = await past.first(stream, (OperationRenewed.type,), after=at.position)
    if renewal and at.recorded_at < last.blocks_until <= renewal.at.recorded_at:
        telling.say(
            f"{holder} renewed it only {words.at(renewal.at)}: before that, what was wanted was free"
            f" {_after(last.blocks_until, at)}.",
            renewal.at,
        )
        telling.facts["free_at"] = last.blocks_until
        if end:
            telling.say(dated(end), end.at)
            telling.facts["ended"] = {"type": end.at.type, **place(end)}
        return
    later = await past.last(stream, (OperationRenewed.type,), upto=end.at.position if end else 2**62)
    if later and later.at.position > at.position and isinstance(later.event, OperationRenewed):
        last = later.event
        telling.say(f"{holder} renewed it again, at last {words.at(later.at)}.", later.at)
    if end is None:
        until = words.moment(last.blocks_until)
        telling.say(f"The log does not tell of its end yet; without a heartbeat it blocks until {until}.")
        telling.facts["free_at"] = None
        return
    free_at = min(end.at.recorded_at, last.blocks_until)
    telling.facts["free_at"] = free_at
    telling.facts["ended"] = {"type": end.at.type, **place(end)}
    after = _after(free_at, at)
    if isinstance(end.event, OperationFinished):
        telling.say(
            f"{holder} ended it as {end.event.outcome} {words.at(end.at)}; what was wanted was free"
            f" {after}.",
            end.at,
        )
    else:
        telling.say(f"It expired {words.at(end.at)}; what was wanted was free {after}.", end.at)


def _after(free_at: datetime, at: Recorded) -> str:
    waited = free_at - at.recorded_at
    if waited <= timedelta(0):
        return "at once"
    return f"{words.duration(waited)} after the refusal, at {words.moment(free_at)}"


async def started(event: OperationStarted, at: Recorded, past: Past, telling: Telling) -> None:
    """By which rules the claim blocks, and how it ended."""
    if rules := await rules_at(past, at.position):
        window = words.seconds(min(rules.policy.conflict_window_seconds, event.ttl_seconds))
        is_own = event.ttl_seconds != rules.policy.operation_timeout_seconds
        telling.say(
            f"It turns others away for {window} from its start and from each heartbeat, and expires"
            f" {words.seconds(event.ttl_seconds)} after the last, by"
            f" {'its own time to live and ' if is_own else ''}the rules {rules.since}.",
            rules.at,
        )
        telling.facts["policy"] = rules.facts("conflict_window_seconds", "operation_timeout_seconds")
    telling.facts["resources"] = event.resources
    end = await past.first(at.stream, _ENDS, after=at.position)
    if end is None:
        telling.say("The log does not tell of its end yet.")
    elif isinstance(end.event, OperationFinished):
        telling.say(f"{event.agent} ended it as {end.event.outcome} {words.at(end.at)}.", end.at)
    else:
        telling.say(f"It expired {words.at(end.at)}.", end.at)


async def went_on(
    event: OperationRenewed | OperationFinished, at: Recorded, past: Past, telling: Telling
) -> None:
    """Which claim it was."""
    if start := await _start(at, past):
        claim, begun = start.event, start.at
        if isinstance(claim, OperationStarted):
            telling.say(
                f"{event.agent} had claimed {words.resources(claim.resources)} for"
                f" {words.quote(claim.action)} {words.at(begun)}.",
                begun,
            )
            telling.facts["resources"] = claim.resources


async def expired(event: OperationExpired, at: Recorded, past: Past, telling: Telling) -> None:
    """Who held it, when it was last heard of, and how long it was given."""
    start = await _start(at, past)
    if start is None or not isinstance(start.event, OperationStarted):
        return
    claim = start.event
    telling.say(
        f"{event.agent} had claimed {words.resources(claim.resources)} for {words.quote(claim.action)}"
        f" {words.at(start.at)}.",
        start.at,
    )
    last: OperationStarted | OperationRenewed = claim
    renewal = await past.last(at.stream, (OperationRenewed.type,), upto=at.position)
    if renewal and isinstance(renewal.event, OperationRenewed):
        last = renewal.event
        telling.say(f"It last renewed that claim {words.at(renewal.at)}.", renewal.at)
    else:
        telling.say("It never renewed that claim.", start.at)
    telling.say(
        f"An operation that is not renewed for {words.seconds(claim.ttl_seconds)} expires; this one was"
        f" due at {words.moment(last.expires_at)}.",
        (renewal or start).at,
    )
    telling.facts |= {
        "agent": event.agent,
        "action": claim.action,
        "resources": claim.resources,
        "started_at": start.at.recorded_at,
        "last_renewed_at": renewal.at.recorded_at if renewal else None,
        "ttl_seconds": claim.ttl_seconds,
        "due_at": last.expires_at,
    }


async def _start(at: Recorded, past: Past) -> Told | None:
    return await past.first(at.stream, (OperationStarted.type,))

"""Where an event came from: a tick, a request, a typed command, the clock or the start of a service.

All events of a run have the run's id as their correlation id, and so have those of an agent that the run
calls, if it passes the id on. All other events have the correlation id of their request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventstore.events import (
    JobDefined,
    RequestAnswered,
    RunMissed,
    RunRetried,
    RunSkipped,
    RunStarted,
    TickBuffered,
)
from service.explain import words
from service.explain.record import Origin, Reason
from service.explain.sentences import schedule

if TYPE_CHECKING:
    from service.explain.record import LoggedEvent, LogQueries, OriginKind

CLOCK, SERVICE, SCHEDULER = "system:clock", "system:service", "system:scheduler"

_Tick = RunStarted | RunSkipped | RunMissed | TickBuffered
_TICKS = (RunStarted.type, RunSkipped.type, RunMissed.type)
_SOURCES = {"default": "by default", "settings": "by the settings", "api": "over the API"}


async def origin(
    item: LoggedEvent, root: LoggedEvent | None, request: list[LoggedEvent], past: LogQueries
) -> Origin:
    """Where an event came from.

    Args:
        item: the event.
        root: the root of its chain of causes, if it has one.
        request: the events near it with the same correlation id.
        past: the log.
    """
    if tick := await _tick(item, request, past):
        return await _of_run(item, tick, past)
    at = item.at
    match at.actor:
        case actor if actor == CLOCK:
            reasons = [Reason("It was triggered by the passing of time, not by a request.")]
            if root and root.at.actor != CLOCK:
                first = await origin(root, None, await past.of_request(root), past)
                lead = f"Its first cause was recorded {words.at(root.at)}."
                reasons += [Reason(lead, (root.at.position,)), *first.reasons]
            return Origin("clock", tuple(reasons), {})
        case actor if actor == SERVICE:
            return _plain("service", "It came from the settings, when a service started.", item)
        case actor if actor.startswith("system:"):
            return _plain("other", f"It was done by {words.actor_name(actor)}.", item)
        case _:
            return _asked(item, request)


def _plain(kind: OriginKind, sentence: str, item: LoggedEvent) -> Origin:
    return Origin(kind, (Reason(sentence),), {"actor": item.at.actor})


def _asked(item: LoggedEvent, request: list[LoggedEvent]) -> Origin:
    if item.at.actor.startswith("cli:"):
        return _plain("command", f"It was requested by {words.actor_name(item.at.actor)}.", item)
    return _of_request(item, request)


def _of_request(item: LoggedEvent, request: list[LoggedEvent]) -> Origin:
    at = item.at
    facts: dict[str, Any] = {"actor": at.actor, "correlation_id": at.correlation_id}
    reasons = [
        Reason(
            f"It came from a request by {words.actor_name(at.actor)} with the correlation id"
            f" {words.quote(at.correlation_id)}."
        )
    ]
    answer = _answer(item, request)
    if answer and isinstance(answer.event, RequestAnswered):
        facts["idempotency_key"] = answer.event.key
        facts["status"] = answer.event.status
        reasons.append(
            Reason(
                f"The request had the idempotency key {words.quote(answer.event.key)} and was answered"
                f" with status {answer.event.status} (position {answer.at.position}).",
                (answer.at.position,),
            )
        )
    return Origin("request", tuple(reasons), facts)


def _answer(item: LoggedEvent, request: list[LoggedEvent]) -> LoggedEvent | None:
    """The stored answer to the request, which directly follows the request's events."""
    following = (one for one in request if one.at.position >= item.at.position)
    for position, one in enumerate(following, item.at.position):
        if one.at.position != position:
            return None
        if isinstance(one.event, RequestAnswered):
            return one
    return None


async def _tick(item: LoggedEvent, request: list[LoggedEvent], past: LogQueries) -> LoggedEvent | None:
    """The event that decided the tick to which this event belongs, if any."""
    if isinstance(item.event, TickBuffered):
        return item
    if item.at.stream.startswith("run-"):
        return await past.first(item.at.stream, _TICKS)
    if found := await past.first(f"run-{item.at.correlation_id}", _TICKS):
        return found
    if item.at.actor != SCHEDULER:
        return None
    # One claim of a tick is decided as a whole, so the event of the tick is near the others.
    ticks = [one for one in request if isinstance(one.event, _Tick)]
    return min(ticks, key=lambda one: abs(one.at.position - item.at.position), default=None)


async def _of_run(item: LoggedEvent, tick: LoggedEvent, past: LogQueries) -> Origin:
    event = tick.event
    assert isinstance(event, _Tick)
    manual = isinstance(event, RunStarted) and event.manual
    facts: dict[str, Any] = {"job": event.job, "tick": event.tick, "manual": manual}
    job = f"the job {event.job}"
    which = f"a manual run of {job}" if manual else f"the tick of {job} at {words.moment(event.tick)}"
    text = f"It belongs to {which}"
    if isinstance(event, RunStarted):
        text += await _attempt(item, tick, event, facts, past)
    reasons = [Reason(f"{text}.", (tick.at.position,)), *await _schedule(event.job, tick, facts, past)]
    if manual:
        asked = _asked(tick, await past.of_request(tick))
        facts |= asked.facts
        reasons += asked.reasons
    if not item.at.actor.startswith("system:") and item.at.position != tick.at.position:
        reasons.append(
            Reason(f"During the run, {words.actor_name(item.at.actor)} requested this over HTTP.")
        )
    return Origin("run", tuple(reasons), facts)


async def _attempt(
    item: LoggedEvent, tick: LoggedEvent, event: RunStarted, facts: dict[str, Any], past: LogQueries
) -> str:
    """The run, and its attempt at the time."""
    attempt, runner = int(event.runner is not None), event.runner
    retried = await past.last(tick.at.stream, (RunRetried.type,), upto=item.at.position)
    if retried and isinstance(retried.event, RunRetried):
        attempt, runner = retried.event.attempt, retried.event.runner
    facts |= {"run_id": event.run_id, "runner": runner}
    facts |= {"attempt": attempt, "attempts_allowed": event.attempts_allowed}
    if runner is None:
        return f": run {event.run_id}, waiting for a process since {words.at(tick.at)[3:]}"
    of = f" of {event.attempts_allowed}" if event.attempts_allowed > 1 else ""
    return f": attempt {attempt}{of} by process {runner}, run {event.run_id}, started {words.at(tick.at)}"


async def _schedule(job: str, tick: LoggedEvent, facts: dict[str, Any], past: LogQueries) -> list[Reason]:
    """The job's schedule, and where it was defined."""
    defined = await past.last(f"job-{job}", (JobDefined.type,), upto=tick.at.position)
    if defined is None or not isinstance(defined.event, JobDefined):
        return []
    definition = defined.event.definition
    facts |= {"schedule": definition.cron or definition.every_seconds, "defined_at": defined.at.position}
    text = (
        f"The schedule of the job is {schedule(definition)}, as defined {_SOURCES[defined.event.source]}"
        f" {words.at(defined.at)}."
    )
    return [Reason(text, (defined.at.position,))]

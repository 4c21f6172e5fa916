"""Where it began: a tick, a request, a command that somebody typed, the clock, the start of a service.

Everything that a run does bears the run's id as its correlation id, and so does what an agent writes that
was called by the run and hands the id on. All else bears the id of the request that it came of.
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
    from service.explain.record import OriginKind, Past, Told

CLOCK, SERVICE, SCHEDULER = "system:clock", "system:service", "system:scheduler"

_Tick = RunStarted | RunSkipped | RunMissed | TickBuffered
_TICKS = (RunStarted.type, RunSkipped.type, RunMissed.type)
_SOURCES = {"default": "by default", "settings": "by the settings", "api": "over the API"}


async def origin(item: Told, root: Told | None, request: list[Told], past: Past) -> Origin:
    """Where an event began.

    Args:
        item: the event.
        root: the first cause of all, where there is one.
        request: the events that bear the same correlation id, near it.
        past: the log.
    """
    if tick := await _tick(item, request, past):
        return await _of_run(item, tick, past)
    at = item.at
    match at.actor:
        case actor if actor == CLOCK:
            reasons = [Reason("Nobody asked for it: the passing of time brought it about.")]
            if root and root.at.actor != CLOCK:
                first = await origin(root, None, await past.of_request(root), past)
                lead = f"What led to it began {words.at(root.at)}."
                reasons += [Reason(lead, (root.at.position,)), *first.reasons]
            return Origin("clock", tuple(reasons), {})
        case actor if actor == SERVICE:
            return _plain("service", "It came of the settings, when a service started.", item)
        case actor if actor.startswith("system:"):
            return _plain("other", f"It was done by {words.by(actor)}.", item)
        case _:
            return _asked(item, request)


def _plain(kind: OriginKind, sentence: str, item: Told) -> Origin:
    return Origin(kind, (Reason(sentence),), {"actor": item.at.actor})


def _asked(item: Told, request: list[Told]) -> Origin:
    if item.at.actor.startswith("cli:"):
        return _plain("command", f"It was asked for by {words.by(item.at.actor)}.", item)
    return _of_request(item, request)


def _of_request(item: Told, request: list[Told]) -> Origin:
    at = item.at
    facts: dict[str, Any] = {"actor": at.actor, "correlation_id": at.correlation_id}
    reasons = [
        Reason(
            f"It came of a request by {words.by(at.actor)} with the correlation id"
            f" {words.quote(at.correlation_id)}."
        )
    ]
    answer = _answer(item, request)
    if answer and isinstance(answer.event, RequestAnswered):
        facts["idempotency_key"] = answer.event.key
        facts["status"] = answer.event.status
        reasons.append(
            Reason(
                f"The request bore the idempotency key {words.quote(answer.event.key)} and was answered"
                f" with status {answer.event.status} (position {answer.at.position}).",
                (answer.at.position,),
            )
        )
    return Origin("request", tuple(reasons), facts)


def _answer(item: Told, request: list[Told]) -> Told | None:
    """The kept answer of the request: behind its events, with nobody else's in between."""
    following = (one for one in request if one.at.position >= item.at.position)
    for position, one in enumerate(following, item.at.position):
        if one.at.position != position:
            return None
        if isinstance(one.event, RequestAnswered):
            return one
    return None


async def _tick(item: Told, request: list[Told], past: Past) -> Told | None:
    """The event that gave the tick its outcome that this event belongs to."""
    if isinstance(item.event, TickBuffered):
        return item
    if item.at.stream.startswith("run-"):
        return await past.first(item.at.stream, _TICKS)
    if found := await past.first(f"run-{item.at.correlation_id}", _TICKS):
        return found
    if item.at.actor != SCHEDULER:
        return None
    # What one claim decided: the tick's own event stands beside the others.
    ticks = [one for one in request if isinstance(one.event, _Tick)]
    return min(ticks, key=lambda one: abs(one.at.position - item.at.position), default=None)


async def _of_run(item: Told, tick: Told, past: Past) -> Origin:
    event = tick.event
    assert isinstance(event, _Tick)
    manual = isinstance(event, RunStarted) and event.manual
    facts: dict[str, Any] = {"job": event.job, "tick": event.tick, "manual": manual}
    which = "a run by hand" if manual else f"the tick of {words.moment(event.tick)}"
    text = f"It belongs to {which} of the job {event.job}"
    if isinstance(event, RunStarted):
        text += await _attempt(item, tick, event, facts, past)
    reasons = [Reason(f"{text}.", (tick.at.position,)), *await _schedule(event.job, tick, facts, past)]
    if manual:
        asked = _asked(tick, await past.of_request(tick))
        facts |= asked.facts
        reasons += asked.reasons
    if not item.at.actor.startswith("system:") and item.at.position != tick.at.position:
        reasons.append(Reason(f"In its course {words.by(item.at.actor)} asked for this over HTTP."))
    return Origin("run", tuple(reasons), facts)


async def _attempt(item: Told, tick: Told, event: RunStarted, facts: dict[str, Any], past: Past) -> str:
    """Which run it was, and how far it had come."""
    attempt, runner = int(event.runner is not None), event.runner
    retried = await past.last(tick.at.stream, (RunRetried.type,), upto=item.at.position)
    if retried and isinstance(retried.event, RunRetried):
        attempt, runner = retried.event.attempt, retried.event.runner
    facts |= {"run_id": event.run_id, "runner": runner}
    facts |= {"attempt": attempt, "attempts_allowed": event.attempts_allowed}
    if runner is None:
        return f": run {event.run_id}, which waited for a process since {words.at(tick.at)[3:]}"
    of = f" of {event.attempts_allowed}" if event.attempts_allowed > 1 else ""
    return f": attempt {attempt}{of} by the process {runner}, run {event.run_id}, begun {words.at(tick.at)}"


async def _schedule(job: str, tick: Told, facts: dict[str, Any], past: Past) -> list[Reason]:
    """When the job is due, and who says so."""
    defined = await past.last(f"job-{job}", (JobDefined.type,), upto=tick.at.position)
    if defined is None or not isinstance(defined.event, JobDefined):
        return []
    definition = defined.event.definition
    facts |= {"schedule": definition.cron or definition.every_seconds, "defined_at": defined.at.position}
    text = (
        f"The job is due {schedule(definition)}, as it was defined {_SOURCES[defined.event.source]}"
        f" {words.at(defined.at)}."
    )
    return [Reason(text, (defined.at.position,))]

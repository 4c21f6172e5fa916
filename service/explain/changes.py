"""What a change changed: the values before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import structs

from eventstore.events import (
    AccessDenied,
    AgentProfileChanged,
    AgentRegistered,
    AppendAbandoned,
    EmailReceived,
    EmailUpdated,
    JobDefined,
    KeyCreated,
    KeyRevoked,
    MessageAcknowledged,
    MessageSent,
    OperationExpired,
    OperationFinished,
    OperationStarted,
    OrchestratorStarted,
    OrchestratorStopped,
    PolicySet,
    RequestAnswered,
    SubjectForgotten,
    TaskCreated,
    TaskUpdated,
)
from service.explain import words
from service.explain.sentences import dated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.explain.narration import Narration
    from service.explain.record import LoggedEvent, LogQueries

MAX_SCANNED_EVENTS = 50
"""How many of an agent's latest events are searched for its claim."""

MAX_SHOWN = 5
"""The number of events of a request that are listed."""

Changed = PolicySet | TaskUpdated | EmailUpdated | AgentProfileChanged | JobDefined

_IGNORED_FIELDS = frozenset({"changed", "day"})
"""Fields that describe the change itself."""

_UNSHOWN_FIELDS = frozenset({"payload", "description"})
"""Fields that may be large and hold personal data: only the fact that they changed is shown."""


async def changed(event: Changed, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """What differs from the previous event that set the same values."""
    before = await past.last(at.stream, _predecessors(event), upto=at.position - 1)
    if before is None or before.event is None:
        narration.add_reason(f"It was set for the first time, by {words.actor_name(at.actor)}.", at)
        return
    differences = dict(_differences(_fields(before.event), _fields(event)))
    narration.facts["changed"] = {
        name: {} if name in _UNSHOWN_FIELDS else {"before": was, "after": is_now}
        for name, (was, is_now) in differences.items()
    }
    narration.facts["before"] = before.at.position
    last_set = f"it had last been set {words.at(before.at)}"
    if not differences:
        narration.add_reason(
            f"It was set again by {words.actor_name(at.actor)} without a change; {last_set}.", at, before.at
        )
        return
    parts = [_in_words(name, was, is_now) for name, (was, is_now) in differences.items()]
    narration.add_reason(
        f"It was changed by {words.actor_name(at.actor)}; {last_set}: {'; '.join(parts)}.", at, before.at
    )


async def email_changed(event: EmailUpdated, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """What differs, and who held a claim on the e-mail at the time."""
    await changed(event, at, past, narration)
    if event.handled_by is None:
        return
    for item in await past.of_agent(event.handled_by, at.position, MAX_SCANNED_EVENTS):
        claim = item.event
        if not isinstance(claim, OperationStarted) or event.email_id not in claim.resources.values():
            continue
        ended = await past.first(item.at.stream, (OperationFinished.type, OperationExpired.type))
        if ended is None or ended.at.position > at.position:
            narration.add_reason(f"The e-mail was claimed at that time: {dated(item)}", item.at)
            narration.facts["claim"] = {"operation_id": claim.operation_id, "position": item.at.position}
            return


def _predecessors(event: Changed) -> tuple[str, ...]:
    match event:
        case TaskUpdated():
            return (TaskCreated.type, TaskUpdated.type)
        case EmailUpdated():
            return (EmailReceived.type, EmailUpdated.type)
        case AgentProfileChanged():
            return (AgentRegistered.type, AgentProfileChanged.type)
        case _:
            return (event.type,)


def _fields(event: AnyEvent) -> dict[str, Any]:
    fields = structs.asdict(event)
    # A job's definition is nested; its fields are what users change.
    if isinstance(event, JobDefined):
        fields = {"source": event.source, **structs.asdict(event.definition)}
    return {name: value for name, value in fields.items() if name not in _IGNORED_FIELDS}


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterable[tuple[str, tuple[Any, Any]]]:
    for name, value in after.items():
        if name in before and before[name] != value:
            yield name, (before[name], value)


def _in_words(name: str, before: Any, after: Any) -> str:
    if name in _UNSHOWN_FIELDS:
        return f"a new {name}"
    return f"{name.replace('_', ' ')} from {_value(before)} to {_value(after)}"


def _value(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "yes" if value else "no"
        case int():
            return words.number(value)
        case float():
            return f"{value:g}"
        case dict() if value and all(isinstance(item, int) for item in value.values()):
            return words.truncated_list(f"{key} {item:,}" for key, item in value.items())
        case list() if value:
            return words.truncated_list(map(str, value))
        case dict() | list():
            return "something else" if value else "none"
        case _:
            return words.quote(str(value))


async def created(
    event: TaskCreated | EmailReceived, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """The latest event of its stream."""
    del event
    last = await past.last(at.stream, upto=2**62)
    if last and last.at.position > at.position:
        narration.add_outcome(f"Its latest event: {dated(last)}", last.at)


async def sent(event: MessageSent, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """Whether it was acknowledged."""
    first = await past.first(at.stream, (MessageAcknowledged.type,), after=at.position)
    if first and isinstance(first.event, MessageAcknowledged):
        narration.add_outcome(f"{first.event.agent} acknowledged it {words.at(first.at)}.", first.at)
    else:
        narration.add_outcome("Nobody had acknowledged it by the end of the log.")
    narration.facts |= {"to_agent": event.to_agent, "task_id": event.task_id}


async def acknowledged(
    event: MessageAcknowledged, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """The message that was acknowledged."""
    message = await past.first(at.stream, (MessageSent.type,))
    if message:
        narration.add_reason(f"The message: {dated(message)}", message.at)
        narration.facts["message_id"] = event.message_id


async def switched(
    event: OrchestratorStarted | OrchestratorStopped, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """Who did it, and how long the previous state had lasted."""
    narration.add_reason(f"It was requested by {words.actor_name(at.actor)}.", at)
    before = await past.last(at.stream, upto=at.position - 1)
    if before is None:
        narration.add_reason("That was the first time.", at)
        return
    was = "shut down" if isinstance(event, OrchestratorStarted) else "running"
    span = words.duration(at.recorded_at - before.at.recorded_at)
    narration.add_reason(
        f"It had been {was} for {span}, since {words.moment(before.at.recorded_at)}.", before.at
    )


def answered(
    event: RequestAnswered, at: Recorded, narration: Narration, request: list[LoggedEvent]
) -> None:
    """The events that the request led to."""
    narration.facts |= {"key": event.key, "status": event.status}
    narration.add_reason("Every repeat of that request gets the same answer.", at)
    others = [item for item in request if item.at.position < at.position]
    for item in others[-MAX_SHOWN:]:
        narration.add_reason(f"The request led to this: {dated(item)}", item.at)


def abandoned(event: AppendAbandoned, at: Recorded, narration: Narration) -> None:
    """Why such an event is appended."""
    narration.add_reason(
        "When a connection breaks during a commit, the outcome is unknown. This event took the position"
        " that the lost events would have had, so they can no longer be committed.",
        at,
    )
    narration.add_reason(
        "Their commands were decided again for callers that were still waiting; the other callers were told"
        " that the outcome was unknown.",
        at,
    )
    narration.facts |= {"first_event_id": event.first_event_id, "events": event.events}


def forgotten(event: SubjectForgotten, at: Recorded, narration: Narration) -> None:
    """What was encrypted with the key, and what had been stored unencrypted before."""
    narration.facts |= {
        "key_id": event.key_id,
        "emails": event.emails,
        "messages": event.messages,
        "in_plain": event.in_plain,
    }
    narration.add_reason(
        f"It was requested by {words.actor_name(at.actor)}. Whose key it was is not recorded.", at
    )
    if event.in_plain:
        narration.add_reason(
            f"{words.count(event.in_plain, 'e-mail')} of the same sender had been logged unencrypted"
            " before, and cannot be erased from an immutable log.",
            at,
        )


def key_changed(event: KeyCreated | KeyRevoked | AccessDenied, at: Recorded, narration: Narration) -> None:
    """Who did it, or tried to, and the key that it is about."""
    narration.facts |= {"key_id": event.key_id, "agent": event.agent}
    narration.add_reason(
        f"It was requested by {words.actor_name(at.actor)}, and is about the key {event.key_id}.", at
    )
    if isinstance(event, AccessDenied):
        narration.facts |= {"code": event.code, "command": event.command}

"""Why a tick did not run, and how runs ended."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

from eventstore.events import (
    ConflictDetected,
    JobDefined,
    JobPaused,
    JobRemoved,
    OperationStarted,
    OrchestratorStopped,
    RunAttemptFailed,
    RunFinished,
    RunMissed,
    RunRenewed,
    RunRetried,
    RunSkipped,
    RunStarted,
    TickBuffered,
    TokensDenied,
)
from service.explain import budget, operations, words
from service.explain.sentences import dated

if TYPE_CHECKING:
    from eventstore.recorded import Recorded
    from service.explain.narration import Narration
    from service.explain.record import LoggedEvent, LogQueries

MAX_ATTEMPTS = 50
"""The number of steps of a run that are listed."""

_STEPS = (RunStarted.type, RunAttemptFailed.type, RunRetried.type, RunFinished.type)
_SIGNS_OF_LIFE = (RunStarted.type, RunRetried.type, RunRenewed.type)


async def skipped(event: RunSkipped, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """What prevented the tick from running."""
    narration.facts |= {"job": event.job, "tick": event.tick, "reason": event.reason}
    cause = await past.event_at(at.caused_by) if at.caused_by else None
    match event.reason:
        case "budget" | "conflict":
            await _refused(cause, past, narration)
        case "paused":
            types = (JobPaused.type,)
            await _explain_actor(await past.last(f"job-{event.job}", types, upto=at.position), narration)
        case "shut_down":
            types = (OrchestratorStopped.type,)
            await _explain_actor(await past.last("orchestrator", types, upto=at.position), narration)
        case "overlap":
            await _explain_overlap(event, at, cause, past, narration)
        case "schedule_ended":
            await _explain_ended_schedule(event, at, past, narration)
        case _:
            assert_never(event.reason)


async def _refused(cause: LoggedEvent | None, past: LogQueries, narration: Narration) -> None:
    """Why the run was refused its tokens or its claim."""
    if cause is None:
        return
    narration.add_reason(dated(cause), cause.at)
    match cause.event:
        case TokensDenied():
            await budget.denied(cause.event, cause.at, past, narration)
        case ConflictDetected():
            await operations.conflict_detected(cause.event, cause.at, past, narration)
        case OperationStarted():
            await operations.blocking(cause.event, cause.at, past, narration)
        case _:
            pass


async def _explain_actor(cause: LoggedEvent | None, narration: Narration) -> None:
    if cause:
        narration.add_reason(dated(cause), cause.at)
        narration.add_reason(f"It was requested by {words.actor_name(cause.at.actor)}.", cause.at)


async def _explain_overlap(
    event: RunSkipped, at: Recorded, cause: LoggedEvent | None, past: LogQueries, narration: Narration
) -> None:
    if cause is None:
        return
    if cause.at.stream.startswith("run-"):
        await _explain_active_run(cause, at, past, narration)
        return
    waiting = await past.last(f"job-{event.job}", (TickBuffered.type,), upto=at.position)
    if waiting:
        narration.add_reason(dated(waiting), waiting.at)


async def _explain_active_run(
    cause: LoggedEvent, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    stream = cause.at.stream
    if begun := await past.first(stream, (RunStarted.type,)):
        since = words.duration(at.recorded_at - begun.at.recorded_at)
        narration.add_reason(dated(begun, f", {since} earlier"), begun.at)
    if ended := await past.first(stream, (RunFinished.type,), after=at.position):
        narration.add_reason(dated(ended), ended.at)


async def _explain_ended_schedule(
    event: RunSkipped, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """How late the tick was, and what ended its schedule."""
    late = at.recorded_at - event.tick
    narration.facts["late_seconds"] = late.total_seconds()
    narration.add_reason(f"It had been due for {words.duration(late)}, and was not too late to run.", at)
    types = (JobDefined.type, JobRemoved.type)
    await _explain_actor(await past.first(f"job-{event.job}", types, after=at.position), narration)


async def missed(event: RunMissed, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """How late the tick was noticed, and whether any process could have run it."""
    late, in_time = at.recorded_at - event.tick, at.recorded_at
    narration.facts |= {"job": event.job, "tick": event.tick, "late_seconds": late.total_seconds()}
    narration.add_reason(f"It was noticed {words.duration(late)} after it was due.", at)
    defined = await past.last(f"job-{event.job}", (JobDefined.type,), upto=at.position)
    if defined and isinstance(defined.event, JobDefined):
        patience = defined.event.definition.catch_up_seconds
        in_time = min(in_time, event.tick + timedelta(seconds=patience))
        narration.facts["catch_up_seconds"] = patience
        if late.total_seconds() > patience:
            narration.add_reason(
                f"The job catches up on ticks that are at most {words.seconds(patience)} late, as defined"
                f" {words.at(defined.at)}.",
                defined.at,
            )
        else:
            # Recorded before `run_skipped` had a reason for it.
            narration.add_reason("Its schedule ended then, before any process had noticed the tick.", at)
    # After a long gap many missed ticks are recorded in a row; only activity in time for this one counts.
    before = await past.before(in_time)
    if before and before.at.recorded_at <= event.tick:
        again = await past.event_at(before.at.position + 1)
        end = again.at if again else at
        until = "then" if end.recorded_at == at.recorded_at else words.moment(end.recorded_at)
        silent = words.duration(end.recorded_at - before.at.recorded_at)
        narration.facts["silent_since"] = before.at.recorded_at
        narration.add_reason(
            f"Nothing at all was recorded for {silent}, from {words.moment(before.at.recorded_at)}"
            f" (position {before.at.position}) until {until}, so no process was running, or none reached"
            " the database.",
            before.at,
        )
    elif before:
        narration.add_reason(
            f"There was other activity in the meantime, such as by {words.actor_name(before.at.actor)}"
            f" {words.at(before.at)}, but no process claimed the tick.",
            before.at,
        )


async def finished(event: RunFinished, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """All attempts of the run; for a lost run, also the last sign of life."""
    await _explain_attempts(at, past, narration)
    narration.facts |= {"job": event.job, "outcome": event.outcome, "attempts": event.attempts}
    if event.outcome == "lost":
        last = await past.last(at.stream, _SIGNS_OF_LIFE, upto=at.position)
        if last and isinstance(last.event, RunStarted | RunRetried | RunRenewed):
            until = last.event.lease_expires_at
            lease = f", with a lease until {words.moment(until)}" if until else ""
            narration.add_reason(
                f"The last sign of life of its process was {words.at(last.at)}{lease}.", last.at
            )
            narration.facts["last_heard_of_at"] = last.at.recorded_at
        which = "the only attempt" if event.attempts == 1 else f"the last of {event.attempts} attempts"
        narration.add_reason(f"It was {which}, so the run was lost.", at)


async def attempt_failed(
    event: RunAttemptFailed, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """The run so far."""
    narration.facts |= {"job": event.job, "attempt": event.attempt, "reason": event.reason}
    await _explain_attempts(at, past, narration)


async def in_progress(
    event: RunStarted | RunRenewed | RunRetried, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """Why the run started, its attempts so far, and how it ended."""
    narration.facts |= {"job": event.job, "run_id": event.run_id}
    if isinstance(event, RunStarted):
        await _explain_start(event, at, past, narration)
    await _explain_attempts(at, past, narration)
    ended = await past.first(at.stream, (RunFinished.type,), after=at.position)
    if ended:
        narration.add_outcome(dated(ended), ended.at)
    else:
        narration.add_outcome("It had not ended by the end of the log.")


async def _explain_start(event: RunStarted, at: Recorded, past: LogQueries, narration: Narration) -> None:
    if event.manual:
        narration.add_reason(f"It was requested by {words.actor_name(at.actor)}.", at)
        return
    waited = await past.last(f"job-{event.job}", (TickBuffered.type,), upto=at.position)
    if waited and isinstance(waited.event, TickBuffered) and waited.event.tick == event.tick:
        narration.add_reason(dated(waited), waited.at)
    late = at.recorded_at - event.tick
    when = f"{words.duration(late)} later" if late else "at that time"
    narration.add_reason(
        f"The tick was due at {words.moment(event.tick)}, and nothing blocked it {when}.", at
    )


async def paused(event: JobPaused, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """Who paused the job; or which run failed, and how."""
    narration.facts |= {"job": event.job, "reason": event.reason}
    if event.reason == "manual":
        narration.add_reason(f"It was requested by {words.actor_name(at.actor)}.", at)
        return
    cause = await past.event_at(at.caused_by) if at.caused_by else None
    if cause and isinstance(cause.event, RunFinished):
        narration.add_reason(dated(cause), cause.at)
        await finished(cause.event, cause.at, past, narration)
        narration.add_reason(
            "The job is defined to pause when a run fails; it must be resumed by hand.", at
        )


async def buffered(event: TickBuffered, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """The run that the tick waits for."""
    narration.facts |= {"job": event.job, "tick": event.tick}
    cause = await past.event_at(at.caused_by) if at.caused_by else None
    if cause and cause.at.stream.startswith("run-"):
        await _explain_active_run(cause, at, past, narration)


async def _explain_attempts(at: Recorded, past: LogQueries, narration: Narration) -> None:
    """List the steps of the run before this one."""
    steps = await past.earliest(at.stream, MAX_ATTEMPTS, _STEPS)
    for item in steps:
        if item.at.position < at.position:
            narration.add_reason(dated(item), item.at)

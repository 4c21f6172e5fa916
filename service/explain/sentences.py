"""Every event type in one sentence, made from the event alone.

Each `match` ends with `assert_never`: an event type without a sentence is a type error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from eventstore import events
from service.explain import words
from service.explain.record import Step

if TYPE_CHECKING:
    from eventstore.events import AnyEvent
    from service.explain.record import LoggedEvent

_OfBudget = (
    events.TokensReserved
    | events.TokensSettled
    | events.TokensReleased
    | events.TokensUsed
    | events.TokensDenied
    | events.BudgetThresholdCrossed
    | events.BudgetDayReset
)

_OfJob = (
    events.JobDefined
    | events.JobRemoved
    | events.JobPaused
    | events.JobResumed
    | events.TickBuffered
    | events.RunMissed
    | events.RunSkipped
    | events.RunStarted
    | events.RunRenewed
    | events.RunAttemptFailed
    | events.RunRetried
    | events.RunFinished
)

_OfKey = (
    events.KeyCreated | events.KeyFirstUsed | events.KeyExpired | events.KeyRevoked | events.AccessDenied
)


def step(item: LoggedEvent) -> Step:
    """An event as one step of a causal chain."""
    return Step(item.at.position, item.at.type, item.at.recorded_at, sentence(item))


def sentence(item: LoggedEvent) -> str:
    """What happened, in one sentence."""
    if item.event is None:
        return f"This version of the software does not know events of the type {item.at.type}."
    return of_event(item.event)


def dated(item: LoggedEvent, since: str = "") -> str:
    """What happened, in one sentence, with its time and position."""
    at = item.at
    return f"{sentence(item)[:-1]} ({words.moment(at.recorded_at)}{since}, position {at.position})."


def of_event(event: AnyEvent) -> str:
    """What happened, in one sentence."""
    if isinstance(event, _OfBudget):
        return _of_budget(event)
    if isinstance(event, _OfJob):
        return _of_job(event)
    if isinstance(event, _OfKey):
        return _of_key(event)
    match event:
        case events.AgentRegistered():
            if event.automatic:
                return f"{event.agent} was registered automatically, when it first acted."
            return f"{event.agent} was registered as {words.quote(event.role)}."
        case events.AgentProfileChanged():
            url = event.url or "the default URL"
            role = words.quote(event.role)
            return f"The profile of {event.agent} is now: {role}, {url}, priority {event.priority}."
        case events.AgentStatusChanged():
            return _status(event)
        case events.AgentHeartbeatRecorded():
            return f"{event.agent} sent a heartbeat."
        case events.MessageSent():
            to = event.to_agent or "everybody"
            return f"{event.agent} sent {to} a message: {words.quote(event.message)}."
        case events.MessageAcknowledged():
            return f"{event.agent} acknowledged a message, which left its inbox."
        case events.OperationStarted():
            claimed, until = words.resources(event.resources), words.moment(event.blocks_until)
            return (
                f"{event.agent} claimed {claimed} for {words.quote(event.action)}; the claim blocks others"
                f" until {until}."
            )
        case events.OperationRenewed():
            until, expiry = words.moment(event.blocks_until), words.moment(event.expires_at)
            return (
                f"{event.agent} renewed its claim: it blocks others until {until}, and expires at {expiry}"
                " without another heartbeat."
            )
        case events.OperationFinished():
            used = f", using {words.tokens(event.tokens_used)}" if event.tokens_used is not None else ""
            return f"{event.agent} finished its operation as {event.outcome}{used}."
        case events.OperationExpired():
            return f"The operation of {event.agent} expired: it was not renewed in time."
        case events.ConflictDetected():
            holders, contested = (
                words.joined(event.holders or ["another agent"]),
                words.resources(event.contested),
            )
            return (
                f"{event.agent} was blocked from {words.quote(event.action)}: {holders} had claimed"
                f" {contested} for {words.quote(event.holder_action)}."
            )
        case events.PolicySet():
            return (
                f"The rules were set: {words.tokens(event.daily_tokens)} a day, claims block for"
                f" {words.seconds(event.conflict_window_seconds)} and expire after"
                f" {words.seconds(event.operation_timeout_seconds)} without a heartbeat."
            )
        case events.TaskCreated():
            owner = f" for {event.assigned_agent}" if event.assigned_agent else ""
            return f"The task {words.quote(event.title)} was created{owner}, as {event.status}."
        case events.TaskUpdated():
            changed = words.joined(name.replace("_", " ") for name in event.changed)
            return f"The task {words.quote(event.title)} was changed ({changed}); it is now {event.status}."
        case events.EmailReceived():
            subject = f": {words.quote(event.subject)}" if event.subject else ""
            return f"An e-mail from {event.from_email} was logged as {event.status}{subject}."
        case events.EmailUpdated():
            return f"The e-mail is now {words.quote(event.category)} and {event.status}{_handler(event)}."
        case events.OrchestratorStarted():
            return "The orchestrator was started: jobs may fire, and agents may be called."
        case events.OrchestratorStopped():
            return "The orchestrator was shut down: no job fires, and no agent is called."
        case events.RequestAnswered():
            return (
                f"The request with the idempotency key {words.quote(event.key)} got its first answer:"
                f" status {event.status}."
            )
        case events.SubjectForgotten():
            sealed = words.count(len(event.emails), "e-mail"), words.count(len(event.messages), "message")
            return (
                f"An encryption key was destroyed: the personal data in {words.joined(sealed)} encrypted"
                " with it can no longer be read."
            )
        case events.AppendAbandoned():
            return (
                f"A connection broke while {words.count(event.events, 'event')}"
                f" {words.were(event.events)} being appended; the append was not committed, and no longer"
                " can be."
            )
        case _:
            assert_never(event)


def schedule(definition: events.JobDefinition) -> str:
    """The schedule of a job."""
    if definition.cron:
        return f"{words.quote(definition.cron)} in {definition.timezone}"
    return f"every {words.seconds(definition.every_seconds or 0)}"


def _status(event: events.AgentStatusChanged) -> str:
    change = f"{event.agent} went from {event.previous} to {event.status}"
    match event.reason:
        case "heartbeat":
            return f"{change}: its heartbeat said so."
        case "activity":
            return f"{change}: it acted."
        case "inactivity":
            return f"{change}: it was silent for too long."
        case "operation_started":
            return f"{change}: it started an operation."
        case "run_started":
            return f"{change}: a run that calls it started."
        case "run_ended":
            return f"{change}: a run that called it ended."
        case _:
            assert_never(event.reason)


def _handler(event: events.EmailUpdated) -> str:
    return f", handled by {event.handled_by}" if event.handled_by else ""


def _of_budget(event: _OfBudget) -> str:
    match event:
        case events.TokensReserved():
            held, were = words.tokens(event.tokens), words.were(event.tokens)
            return f"{held} {were} reserved for {event.agent} until {words.moment(event.expires_at)}."
        case events.TokensSettled():
            used, held = words.number(event.tokens_used), words.tokens(event.tokens_reserved)
            model = f", with {words.quote(event.model)}" if event.model else ""
            return f"{event.agent} used {used} of the {held} reserved for it{model}."
        case events.TokensReleased():
            reservation = f"The reservation of {words.tokens(event.tokens_reserved)} for {event.agent}"
            if event.reason == "expired":
                return f"{reservation} expired: it was not settled in time."
            return f"{reservation} was released."
        case events.TokensUsed():
            model = f" with {words.quote(event.model)}" if event.model else ""
            return f"{event.agent} used {words.tokens(event.tokens)}{model}."
        case events.TokensDenied():
            left = words.number(event.remaining) if event.remaining > 0 else "none"
            owner = "the squad's budget" if event.reason == "budget_exhausted" else "its own limit"
            return (
                f"{event.agent} was refused {words.tokens(event.tokens)}: {owner} for {event.day} had"
                f" {left} left."
            )
        case events.BudgetThresholdCrossed():
            used, total = words.number(event.used), words.tokens(event.total)
            return f"Token use on {event.day} reached {event.percent}%: {used} of {total}."
        case events.BudgetDayReset():
            if event.previous_day == event.day:
                until = words.moment(event.ends_at)
                return (
                    f"The budget day {event.day} now ends at {until} and has {words.tokens(event.total)}."
                )
            return f"The budget day {event.day} began, with {words.tokens(event.total)}."
        case _:
            assert_never(event)


def _of_job(event: _OfJob) -> str:
    job = f"the job {event.job}"
    run = f"a run of {job}"
    match event:
        case events.JobDefined():
            whom = f", calling {event.definition.agent}" if event.definition.agent else ""
            state = "" if event.definition.enabled else ", disabled"
            return f"The job {event.job} was defined: {schedule(event.definition)}{whom}{state}."
        case events.JobRemoved():
            return f"The job {event.job} was removed."
        case events.JobPaused():
            note = f": {words.quote(event.note)}" if event.note else ""
            if event.reason == "failure":
                return f"The job {event.job} was paused because one of its runs failed{note}."
            return f"The job {event.job} was paused{note}."
        case events.JobResumed():
            note = f": {words.quote(event.note)}" if event.note else ""
            return f"The job {event.job} was resumed{note}."
        case events.TickBuffered():
            return f"The tick of {job} at {words.moment(event.tick)} waits for the current run to end."
        case events.RunMissed():
            return f"The tick of {job} at {words.moment(event.tick)} was missed."
        case events.RunSkipped():
            tick, reason = words.moment(event.tick), event.reason.replace("_", " ")
            return f"The tick of {job} at {tick} was skipped ({reason}): {words.line(event.detail)}."
        case events.RunStarted():
            if event.runner is None:
                return f"A run of {job} was requested, and waits for a process."
            attempts = _attempts(event.attempts_allowed)
            if event.manual:
                return f"{event.runner} started a manual run of {job}, with {attempts}."
            tick = words.moment(event.tick)
            return f"{event.runner} started the run of {job} for its tick at {tick}, with {attempts}."
        case events.RunRenewed():
            return f"The lease on {run} was renewed until {words.moment(event.lease_expires_at)}."
        case events.RunAttemptFailed():
            again = words.moment(event.retry_at)
            reason = words.quote(event.reason)
            return f"Attempt {event.attempt} of {run} failed: {reason}; the next is due at {again}."
        case events.RunRetried():
            why = ", because the lease had expired" if event.lease_ran_out else ""
            return f"{event.runner} started attempt {event.attempt} of {run}{why}."
        case events.RunFinished():
            after = f" after {event.attempts} attempts" if event.attempts > 1 else ""
            used = f", using {words.tokens(event.tokens_used)}" if event.tokens_used else ""
            reason = f": {words.quote(event.reason)}" if event.reason else ""
            ended = event.outcome if event.outcome in ("succeeded", "failed") else f"was {event.outcome}"
            return f"A run of {job} {ended}{after}{used}{reason}."
        case _:
            assert_never(event)


def _attempts(allowed: int) -> str:
    return "one attempt" if allowed == 1 else f"up to {allowed} attempts"


def _of_key(event: _OfKey) -> str:
    owner = f"of {event.agent}" if event.agent else f"{event.key_id}"
    match event:
        case events.KeyCreated():
            note = f" and the note {words.quote(event.note)}" if event.note else ""
            return f"The API key {owner} was created, with the scope {event.scope}{note}."
        case events.KeyFirstUsed():
            return f"The API key {owner} was used for the first time."
        case events.KeyExpired():
            return f"The API key {owner} expired."
        case events.KeyRevoked():
            return f"The API key {owner} was revoked."
        case events.AccessDenied():
            return f"{event.command} was refused to the API key {owner}: {event.detail}."
        case _:
            assert_never(event)

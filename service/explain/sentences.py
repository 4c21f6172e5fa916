"""Every kind of event in one sentence, from the event alone.

Each `match` is closed with `assert_never`: a kind of event without a sentence is a type error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from eventstore import events as told
from service.explain import words
from service.explain.record import Step

if TYPE_CHECKING:
    from eventstore.events import AnyEvent
    from service.explain.record import Told

_OfBudget = (
    told.TokensReserved
    | told.TokensSettled
    | told.TokensReleased
    | told.TokensUsed
    | told.TokensDenied
    | told.BudgetThresholdCrossed
    | told.BudgetDayReset
)

_OfJob = (
    told.JobDefined
    | told.JobRemoved
    | told.JobPaused
    | told.JobResumed
    | told.TickBuffered
    | told.RunMissed
    | told.RunSkipped
    | told.RunStarted
    | told.RunRenewed
    | told.RunAttemptFailed
    | told.RunRetried
    | told.RunFinished
)

_OfKey = told.KeyCreated | told.KeyFirstUsed | told.KeyExpired | told.KeyRevoked | told.AccessDenied


def step(item: Told) -> Step:
    """An event as one step of a chain."""
    return Step(item.at.position, item.at.type, item.at.recorded_at, sentence(item))


def sentence(item: Told) -> str:
    """What happened, in one sentence."""
    if item.event is None:
        return f"Something happened that this version of the software does not know: {item.at.type}."
    return of_event(item.event)


def dated(item: Told, since: str = "") -> str:
    """What happened, in one sentence, and where it stands in the log."""
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
        case told.AgentRegistered():
            if event.automatic:
                return f"{event.agent} was registered, because it acted before anybody had named it."
            return f"{event.agent} was registered as {words.quote(event.role)}."
        case told.AgentProfileChanged():
            url = event.url or "the default url"
            role = words.quote(event.role)
            return f"The profile of {event.agent} is now: {role}, {url}, priority {event.priority}."
        case told.AgentStatusChanged():
            return _status(event)
        case told.AgentHeartbeatRecorded():
            return f"{event.agent} gave a sign of life."
        case told.MessageSent():
            to = event.to_agent or "everybody"
            return f"{event.agent} sent {to} a message: {words.quote(event.message)}."
        case told.MessageAcknowledged():
            return f"{event.agent} acknowledged a message, which left its inbox."
        case told.OperationStarted():
            claimed, until = words.resources(event.resources), words.moment(event.blocks_until)
            return (
                f"{event.agent} claimed {claimed} for {words.quote(event.action)}; others were to be"
                f" turned away until {until}."
            )
        case told.OperationRenewed():
            until, expiry = words.moment(event.blocks_until), words.moment(event.expires_at)
            return (
                f"{event.agent} renewed its claim: it blocks until {until}, and expires at {expiry}"
                " without another heartbeat."
            )
        case told.OperationFinished():
            used = f", with {words.tokens(event.tokens_used)}" if event.tokens_used is not None else ""
            return f"{event.agent} ended its operation as {event.outcome}{used}."
        case told.OperationExpired():
            return f"The operation of {event.agent} expired: nobody renewed it in time."
        case told.ConflictDetected():
            holders, contested = (
                words.listed(event.holders or ["somebody"]),
                words.resources(event.contested),
            )
            return (
                f"{event.agent} was turned away from {words.quote(event.action)}: {holders} was at"
                f" {words.quote(event.holder_action)} on {contested}."
            )
        case told.PolicySet():
            return (
                f"The rules were set: {words.tokens(event.daily_tokens)} a day, claims block for"
                f" {words.seconds(event.conflict_window_seconds)} and expire after"
                f" {words.seconds(event.operation_timeout_seconds)} without a heartbeat."
            )
        case told.TaskCreated():
            whose = f" for {event.assigned_agent}" if event.assigned_agent else ""
            return f"The task {words.quote(event.title)} was put on the board{whose}, as {event.status}."
        case told.TaskUpdated():
            changed = words.listed(name.replace("_", " ") for name in event.changed)
            return f"The task {words.quote(event.title)} was changed ({changed}); it is {event.status}."
        case told.EmailReceived():
            subject = f": {words.quote(event.subject)}" if event.subject else ""
            return f"An e-mail from {event.from_email} was logged as {event.status}{subject}."
        case told.EmailUpdated():
            return f"The e-mail is now {words.quote(event.category)} and {event.status}{_handler(event)}."
        case told.OrchestratorStarted():
            return "The orchestrator was started: jobs may fire, and agents may be called."
        case told.OrchestratorStopped():
            return "The orchestrator was shut down: no job fires, and no agent is called."
        case told.RequestAnswered():
            return (
                f"The request with the idempotency key {words.quote(event.key)} got its first answer:"
                f" status {event.status}."
            )
        case told.SubjectForgotten():
            sealed = words.count(len(event.emails), "e-mail"), words.count(len(event.messages), "message")
            return (
                f"A key was destroyed, and with it what was personal in {words.listed(sealed)} that were"
                " sealed with it: nobody can read that any more."
            )
        case told.AppendAbandoned():
            return (
                f"A connection broke while {words.count(event.events, 'event')} were on their way into"
                " the log; they proved not to be in it, and cannot come any more."
            )
        case _:
            assert_never(event)


def schedule(definition: told.JobDefinition) -> str:
    """When a job runs."""
    if definition.cron:
        return f"{words.quote(definition.cron)} in {definition.timezone}"
    return f"every {words.seconds(definition.every_seconds or 0)}"


def _status(event: told.AgentStatusChanged) -> str:
    agent, was = event.agent, f"it had been {event.previous}"
    match event.reason:
        case "heartbeat":
            return f"{agent} said that it is {event.status}; {was}."
        case "activity":
            return f"{agent} acted, and so is {event.status}; {was}."
        case "inactivity":
            return f"Nothing was heard of {agent} for too long, and so it is {event.status}; {was}."
        case "operation_started" | "run_started":
            return f"Work was begun with {agent}, and so it is {event.status}; {was}."
        case "run_ended":
            return f"The work with {agent} ended, and so it is {event.status}; {was}."
        case _:
            assert_never(event.reason)


def _handler(event: told.EmailUpdated) -> str:
    return f", handled by {event.handled_by}" if event.handled_by else ""


def _of_budget(event: _OfBudget) -> str:
    match event:
        case told.TokensReserved():
            held, were = words.tokens(event.tokens), words.were(event.tokens)
            return f"{held} {were} set aside for {event.agent}, until {words.moment(event.expires_at)}."
        case told.TokensSettled():
            used, held = words.number(event.tokens_used), words.tokens(event.tokens_reserved)
            were = words.were(event.tokens_reserved)
            return f"{event.agent} used {used} of the {held} that {were} set aside for it."
        case told.TokensReleased():
            held = f"The {words.tokens(event.tokens_reserved)} set aside for {event.agent}"
            if event.reason == "expired":
                them = "it" if event.tokens_reserved == 1 else "them"
                return f"{held} came free: nobody settled {them} in time."
            return f"{held} {words.were(event.tokens_reserved)} given back."
        case told.TokensUsed():
            model = f" with {words.quote(event.model)}" if event.model else ""
            return f"{event.agent} used {words.tokens(event.tokens)}{model}."
        case told.TokensDenied():
            left = max(event.remaining, 0)
            whose = "the squad's budget" if event.reason == "budget_exhausted" else "its own limit"
            return (
                f"{event.agent} was refused {words.tokens(event.tokens)}: {whose} for {event.day} did not"
                f" allow it, {words.number(left)} {words.were(left)} left to it."
            )
        case told.BudgetThresholdCrossed():
            used, total = words.number(event.used), words.tokens(event.total)
            return f"The use of {event.day} passed {event.percent} %: {used} of {total}."
        case told.BudgetDayReset():
            if event.previous_day == event.day:
                until = words.moment(event.ends_at)
                return (
                    f"The budget day {event.day} goes on until {until}, with {words.tokens(event.total)}."
                )
            return f"The budget day {event.day} began, with {words.tokens(event.total)}."
        case _:
            assert_never(event)


def _of_job(event: _OfJob) -> str:
    job = f"the job {event.job}"
    match event:
        case told.JobDefined():
            whom = f", calling {event.definition.agent}" if event.definition.agent else ""
            state = "" if event.definition.enabled else ", disabled"
            return f"The job {event.job} was defined: {schedule(event.definition)}{whom}{state}."
        case told.JobRemoved():
            return f"The job {event.job} was taken off the schedule."
        case told.JobPaused():
            note = f": {words.quote(event.note)}" if event.note else ""
            if event.reason == "failure":
                return f"The job {event.job} was paused because a run of it failed{note}."
            return f"The job {event.job} was paused{note}."
        case told.JobResumed():
            note = f": {words.quote(event.note)}" if event.note else ""
            return f"The job {event.job} runs again{note}."
        case told.TickBuffered():
            return f"The tick of {words.moment(event.tick)} of {job} waits for the present run to end."
        case told.RunMissed():
            return f"The tick of {words.moment(event.tick)} of {job} was missed."
        case told.RunSkipped():
            tick, reason = words.moment(event.tick), event.reason.replace("_", " ")
            return f"The tick of {tick} of {job} was skipped ({reason}): {words.line(event.detail)}."
        case told.RunStarted():
            if event.runner is None:
                return f"A run of {job} was asked for, and waits for a process to take it up."
            what = "A run of" if event.manual else f"The run for the tick of {words.moment(event.tick)} of"
            how = ", asked for by hand," if event.manual else ""
            attempts = _attempts(event.attempts_allowed)
            return f"{what} {job}{how} was begun by {event.runner}, with {attempts}."
        case told.RunRenewed():
            return (
                f"The run of {job} is still under way, held until {words.moment(event.lease_expires_at)}."
            )
        case told.RunAttemptFailed():
            again = words.moment(event.retry_at)
            reason = words.quote(event.reason)
            return (
                f"Attempt {event.attempt} of a run of {job} failed: {reason}; the next is due at {again}."
            )
        case told.RunRetried():
            why = ", because whoever held it fell silent" if event.lease_ran_out else ""
            return f"Attempt {event.attempt} of a run of {job} was taken up by {event.runner}{why}."
        case told.RunFinished():
            after = f" after {event.attempts} attempts" if event.attempts > 1 else ""
            used = f", having used {words.tokens(event.tokens_used)}" if event.tokens_used else ""
            reason = f": {words.quote(event.reason)}" if event.reason else ""
            ended = event.outcome if event.outcome in ("succeeded", "failed") else f"was {event.outcome}"
            return f"A run of {job} {ended}{after}{used}{reason}."
        case _:
            assert_never(event)


def _attempts(allowed: int) -> str:
    return "one attempt" if allowed == 1 else f"up to {allowed} attempts"


def _of_key(event: _OfKey) -> str:
    whose = f"of {event.agent}" if event.agent else f"{event.key_id}"
    match event:
        case told.KeyCreated():
            note = f", noted as {words.quote(event.note)}" if event.note else ""
            return f"The API key {whose} was made, with the scope {event.scope}{note}."
        case told.KeyFirstUsed():
            return f"Somebody came with the API key {whose} for the first time."
        case told.KeyExpired():
            return f"The time of the API key {whose} ran out."
        case told.KeyRevoked():
            return f"The API key {whose} was taken back."
        case told.AccessDenied():
            return f"{event.command} was refused to the API key {whose}: {event.detail}."
        case _:
            assert_never(event)

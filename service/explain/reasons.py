"""Why: for every kind of event the narrator that knows.

The `match` is closed with `assert_never`: a kind of event without a narrator is a type error. One that has
nothing to add to its sentence, its causes and its origin says so by being named among the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from eventstore import events as told
from service.explain import agents, budget, changes, operations, runs

if TYPE_CHECKING:
    from service.explain.record import Past, Told
    from service.explain.telling import Telling


async def narrate(item: Told, request: list[Told], past: Past, telling: Telling) -> None:
    """Says why it happened."""
    event, at = item.event, item.at
    match event:
        case told.ConflictDetected():
            await operations.turned_away(event, at, past, telling)
        case told.OperationStarted():
            await operations.started(event, at, past, telling)
        case told.OperationRenewed() | told.OperationFinished():
            await operations.went_on(event, at, past, telling)
        case told.OperationExpired():
            await operations.expired(event, at, past, telling)
        case told.TokensDenied():
            await budget.denied(event, at, past, telling)
        case told.TokensReserved():
            await budget.reserved(event, at, past, telling)
        case told.TokensSettled() | told.TokensReleased():
            await budget.ended(event, at, past, telling)
        case told.BudgetThresholdCrossed():
            await budget.crossed(event, at, past, telling)
        case told.BudgetDayReset():
            await budget.day_began(event, at, past, telling)
        case told.AgentStatusChanged():
            await agents.status_changed(event, at, past, telling)
        case told.AgentRegistered():
            await agents.registered(event, at, past, telling)
        case told.PolicySet() | told.TaskUpdated() | told.AgentProfileChanged() | told.JobDefined():
            await changes.changed(event, at, past, telling)
        case told.EmailUpdated():
            await changes.email_changed(event, at, past, telling)
        case told.TaskCreated() | told.EmailReceived():
            await changes.created(event, at, past, telling)
        case told.MessageSent():
            await changes.sent(event, at, past, telling)
        case told.MessageAcknowledged():
            await changes.acknowledged(event, at, past, telling)
        case told.OrchestratorStarted() | told.OrchestratorStopped():
            await changes.switched(event, at, past, telling)
        case told.RequestAnswered():
            changes.answered(event, at, telling, request)
        case told.AppendAbandoned():
            changes.abandoned(event, at, telling)
        case told.KeyCreated() | told.KeyRevoked() | told.AccessDenied():
            changes.key_changed(event, at, telling)
        case told.SubjectForgotten():
            changes.forgotten(event, at, telling)
        case told.RunSkipped():
            await runs.skipped(event, at, past, telling)
        case told.RunMissed():
            await runs.missed(event, at, past, telling)
        case told.RunFinished():
            await runs.finished(event, at, past, telling)
        case told.RunAttemptFailed():
            await runs.attempt_failed(event, at, past, telling)
        case told.RunStarted() | told.RunRenewed() | told.RunRetried():
            await runs.under_way(event, at, past, telling)
        case told.JobPaused():
            await runs.paused(event, at, past, telling)
        case told.TickBuffered():
            await runs.buffered(event, at, past, telling)
        case (
            told.AgentHeartbeatRecorded()
            | told.TokensUsed()
            | told.JobRemoved()
            | told.JobResumed()
            | told.KeyFirstUsed()
            | told.KeyExpired()
            | None
        ):
            pass
        case _:
            assert_never(event)

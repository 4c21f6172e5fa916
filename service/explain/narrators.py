"""The narrator for each event type, which explains why such an event happened.

The `match` ends with `assert_never`: an event type without a narrator is a type error. The last case lists
the types that have nothing to add to their sentence, causes and origin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from eventstore import events
from service.explain import agents, budget, changes, operations, runs

if TYPE_CHECKING:
    from service.explain.narration import Narration
    from service.explain.record import LoggedEvent, LogQueries


async def narrate(
    item: LoggedEvent, request: list[LoggedEvent], past: LogQueries, telling: Narration
) -> None:
    """Explain why it happened."""
    event, at = item.event, item.at
    match event:
        case events.ConflictDetected():
            await operations.turned_away(event, at, past, telling)
        case events.OperationStarted():
            await operations.started(event, at, past, telling)
        case events.OperationRenewed() | events.OperationFinished():
            await operations.went_on(event, at, past, telling)
        case events.OperationExpired():
            await operations.expired(event, at, past, telling)
        case events.TokensDenied():
            await budget.denied(event, at, past, telling)
        case events.TokensReserved():
            await budget.reserved(event, at, past, telling)
        case events.TokensSettled() | events.TokensReleased():
            await budget.ended(event, at, past, telling)
        case events.BudgetThresholdCrossed():
            await budget.crossed(event, at, past, telling)
        case events.BudgetDayReset():
            await budget.day_began(event, at, past, telling)
        case events.AgentStatusChanged():
            await agents.status_changed(event, at, past, telling)
        case events.AgentRegistered():
            await agents.registered(event, at, past, telling)
        case events.PolicySet() | events.TaskUpdated() | events.AgentProfileChanged() | events.JobDefined():
            await changes.changed(event, at, past, telling)
        case events.EmailUpdated():
            await changes.email_changed(event, at, past, telling)
        case events.TaskCreated() | events.EmailReceived():
            await changes.created(event, at, past, telling)
        case events.MessageSent():
            await changes.sent(event, at, past, telling)
        case events.MessageAcknowledged():
            await changes.acknowledged(event, at, past, telling)
        case events.OrchestratorStarted() | events.OrchestratorStopped():
            await changes.switched(event, at, past, telling)
        case events.RequestAnswered():
            changes.answered(event, at, telling, request)
        case events.AppendAbandoned():
            changes.abandoned(event, at, telling)
        case events.KeyCreated() | events.KeyRevoked() | events.AccessDenied():
            changes.key_changed(event, at, telling)
        case events.SubjectForgotten():
            changes.forgotten(event, at, telling)
        case events.RunSkipped():
            await runs.skipped(event, at, past, telling)
        case events.RunMissed():
            await runs.missed(event, at, past, telling)
        case events.RunFinished():
            await runs.finished(event, at, past, telling)
        case events.RunAttemptFailed():
            await runs.attempt_failed(event, at, past, telling)
        case events.RunStarted() | events.RunRenewed() | events.RunRetried():
            await runs.under_way(event, at, past, telling)
        case events.JobPaused():
            await runs.paused(event, at, past, telling)
        case events.TickBuffered():
            await runs.buffered(event, at, past, telling)
        case (
            events.AgentHeartbeatRecorded()
            | events.TokensUsed()
            | events.JobRemoved()
            | events.JobResumed()
            | events.KeyFirstUsed()
            | events.KeyExpired()
            | None
        ):
            pass
        case _:
            assert_never(event)

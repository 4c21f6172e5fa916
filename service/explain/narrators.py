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
    item: LoggedEvent, request: list[LoggedEvent], past: LogQueries, narration: Narration
) -> None:
    """Explain why it happened."""
    event, at = item.event, item.at
    match event:
        case events.ConflictDetected():
            await operations.conflict_detected(event, at, past, narration)
        case events.OperationStarted():
            await operations.started(event, at, past, narration)
        case events.OperationRenewed() | events.OperationFinished():
            await operations.continued(event, at, past, narration)
        case events.OperationExpired():
            await operations.expired(event, at, past, narration)
        case events.TokensDenied():
            await budget.denied(event, at, past, narration)
        case events.TokensReserved():
            await budget.reserved(event, at, past, narration)
        case events.TokensSettled() | events.TokensReleased():
            await budget.ended(event, at, past, narration)
        case events.BudgetThresholdCrossed():
            await budget.crossed(event, at, past, narration)
        case events.BudgetDayReset():
            await budget.day_began(event, at, past, narration)
        case events.AgentStatusChanged():
            await agents.status_changed(event, at, past, narration)
        case events.AgentRegistered():
            await agents.registered(event, at, past, narration)
        case events.PolicySet() | events.TaskUpdated() | events.AgentProfileChanged() | events.JobDefined():
            await changes.changed(event, at, past, narration)
        case events.EmailUpdated():
            await changes.email_changed(event, at, past, narration)
        case events.TaskCreated() | events.EmailReceived():
            await changes.created(event, at, past, narration)
        case events.MessageSent():
            await changes.sent(event, at, past, narration)
        case events.MessageAcknowledged():
            await changes.acknowledged(event, at, past, narration)
        case events.OrchestratorStarted() | events.OrchestratorStopped():
            await changes.switched(event, at, past, narration)
        case events.RequestAnswered():
            changes.answered(event, at, narration, request)
        case events.AppendAbandoned():
            changes.abandoned(event, at, narration)
        case events.KeyCreated() | events.KeyRevoked() | events.AccessDenied():
            changes.key_changed(event, at, narration)
        case events.SubjectForgotten():
            changes.forgotten(event, at, narration)
        case events.RunSkipped():
            await runs.skipped(event, at, past, narration)
        case events.RunMissed():
            await runs.missed(event, at, past, narration)
        case events.RunFinished():
            await runs.finished(event, at, past, narration)
        case events.RunAttemptFailed():
            await runs.attempt_failed(event, at, past, narration)
        case events.RunStarted() | events.RunRenewed() | events.RunRetried():
            await runs.in_progress(event, at, past, narration)
        case events.JobPaused():
            await runs.paused(event, at, past, narration)
        case events.TickBuffered():
            await runs.buffered(event, at, past, narration)
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

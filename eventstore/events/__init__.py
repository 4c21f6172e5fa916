"""The vocabulary: every kind of event that the log can hold.

An event is a fact, named in the past tense, frozen, and self-contained: folding it needs no policy and no
clock, because what the decision was based on (the budget day, the end of a claim) is part of it. Refusals
are facts too, and are events like any other.

Names of types and fields are stored and hashed. They never change; a new shape gets a new
`schema_version` and an upcaster in `eventstore.codec`.
"""

from __future__ import annotations

from eventstore.events.agents import (
    AgentHeartbeatRecorded,
    AgentProfileChanged,
    AgentRegistered,
    AgentStatus,
    AgentStatusChanged,
    StatusReason,
)
from eventstore.events.base import ERASED, Event
from eventstore.events.budget import (
    BudgetDayReset,
    BudgetThresholdCrossed,
    DenialReason,
    PolicySet,
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
    WarningLevel,
)
from eventstore.events.emails import EmailReceived, EmailStatus, EmailUpdated
from eventstore.events.jobs import (
    JobDefined,
    JobDefinition,
    JobPaused,
    JobRemoved,
    JobResumed,
    JobSource,
    Overlap,
    RemovalSource,
    RunAttemptFailed,
    RunFinished,
    RunMissed,
    RunOutcome,
    RunRenewed,
    RunRetried,
    RunSkipped,
    RunStarted,
    SkipReason,
    TickBuffered,
)
from eventstore.events.keys import (
    AccessDenied,
    DenialCode,
    KeyCreated,
    KeyExpired,
    KeyFirstUsed,
    KeyRevoked,
    KeyScope,
)
from eventstore.events.log import AppendAbandoned, RequestAnswered
from eventstore.events.messages import MessageAcknowledged, MessageSent
from eventstore.events.operations import (
    ConflictDetected,
    OperationExpired,
    OperationFinished,
    OperationOutcome,
    OperationRenewed,
    OperationStarted,
)
from eventstore.events.orchestrator import OrchestratorStarted, OrchestratorStopped
from eventstore.events.subjects import SubjectForgotten
from eventstore.events.tasks import TaskCreated, TaskPriority, TaskStatus, TaskUpdated

__all__ = [
    "ERASED",
    "AccessDenied",
    "AgentHeartbeatRecorded",
    "AgentProfileChanged",
    "AgentRegistered",
    "AgentStatus",
    "AgentStatusChanged",
    "AnyEvent",
    "AppendAbandoned",
    "BudgetDayReset",
    "BudgetThresholdCrossed",
    "ConflictDetected",
    "DenialCode",
    "DenialReason",
    "EmailReceived",
    "EmailStatus",
    "EmailUpdated",
    "Event",
    "JobDefined",
    "JobDefinition",
    "JobPaused",
    "JobRemoved",
    "JobResumed",
    "JobSource",
    "KeyCreated",
    "KeyExpired",
    "KeyFirstUsed",
    "KeyRevoked",
    "KeyScope",
    "MessageAcknowledged",
    "MessageSent",
    "OperationExpired",
    "OperationFinished",
    "OperationOutcome",
    "OperationRenewed",
    "OperationStarted",
    "OrchestratorStarted",
    "OrchestratorStopped",
    "Overlap",
    "PolicySet",
    "RemovalSource",
    "RequestAnswered",
    "RunAttemptFailed",
    "RunFinished",
    "RunMissed",
    "RunOutcome",
    "RunRenewed",
    "RunRetried",
    "RunSkipped",
    "RunStarted",
    "SkipReason",
    "StatusReason",
    "SubjectForgotten",
    "TaskCreated",
    "TaskPriority",
    "TaskStatus",
    "TaskUpdated",
    "TickBuffered",
    "TokensDenied",
    "TokensReleased",
    "TokensReserved",
    "TokensSettled",
    "TokensUsed",
    "WarningLevel",
]

AnyEvent = (
    AgentRegistered
    | AgentProfileChanged
    | AgentStatusChanged
    | AgentHeartbeatRecorded
    | MessageSent
    | MessageAcknowledged
    | OperationStarted
    | OperationRenewed
    | OperationFinished
    | OperationExpired
    | ConflictDetected
    | PolicySet
    | TokensReserved
    | TokensSettled
    | TokensReleased
    | TokensUsed
    | TokensDenied
    | BudgetThresholdCrossed
    | BudgetDayReset
    | TaskCreated
    | TaskUpdated
    | EmailReceived
    | EmailUpdated
    | OrchestratorStarted
    | OrchestratorStopped
    | JobDefined
    | JobRemoved
    | JobPaused
    | JobResumed
    | TickBuffered
    | RunMissed
    | RunSkipped
    | RunStarted
    | RunRenewed
    | RunAttemptFailed
    | RunRetried
    | RunFinished
    | SubjectForgotten
    | KeyCreated
    | KeyFirstUsed
    | KeyExpired
    | KeyRevoked
    | AccessDenied
    | RequestAnswered
    | AppendAbandoned
)
"""Every type of event. A `match` over it ends with `assert_never`, so a new type cannot be forgotten."""

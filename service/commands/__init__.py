"""Commands: what the squad can be asked to do. Imperative, frozen, and validated for shape only.

Field names are the API's. A command contains no policy; `service.decide` decides whether it is allowed.
"""

from __future__ import annotations

from service.commands.agents import Heartbeat, RegisterAgent
from service.commands.base import Command
from service.commands.budget import (
    CheckBudget,
    RecordUsage,
    ReleaseReservation,
    ReserveTokens,
    SetBudget,
    SetPolicy,
    SettleReservation,
)
from service.commands.emails import LogEmail, UpdateEmail
from service.commands.jobs import (
    ClaimTick,
    DefineJob,
    EndAttempt,
    PauseJob,
    RemoveJob,
    RenewRun,
    ResumeJob,
    RunJob,
    TakeUpRun,
    WithdrawJob,
)
from service.commands.keys import CreateKey, NoteKeyUse, RevokeKey
from service.commands.messages import AcknowledgeMessage, SendMessage
from service.commands.operations import CheckOperation, FinishOperation, RenewOperation, StartOperation
from service.commands.orchestrator import PassTime, StartOrchestrator, StopOrchestrator
from service.commands.subjects import ForgetSubject
from service.commands.tasks import CreateTask, UpdateTask
from service.commands.usage import Usage

__all__ = [
    "AcknowledgeMessage",
    "AnyCommand",
    "CheckBudget",
    "CheckOperation",
    "ClaimTick",
    "Command",
    "CreateKey",
    "CreateTask",
    "DefineJob",
    "EndAttempt",
    "FinishOperation",
    "ForgetSubject",
    "Heartbeat",
    "LogEmail",
    "NoteKeyUse",
    "PassTime",
    "PauseJob",
    "RecordUsage",
    "RegisterAgent",
    "ReleaseReservation",
    "RemoveJob",
    "RenewOperation",
    "RenewRun",
    "ReserveTokens",
    "ResumeJob",
    "RevokeKey",
    "RunJob",
    "SendMessage",
    "SetBudget",
    "SetPolicy",
    "SettleReservation",
    "StartOperation",
    "StartOrchestrator",
    "StopOrchestrator",
    "TakeUpRun",
    "UpdateEmail",
    "UpdateTask",
    "Usage",
    "WithdrawJob",
]

AnyCommand = (
    RegisterAgent
    | Heartbeat
    | SendMessage
    | AcknowledgeMessage
    | StartOperation
    | RenewOperation
    | FinishOperation
    | SetPolicy
    | SetBudget
    | ReserveTokens
    | SettleReservation
    | ReleaseReservation
    | RecordUsage
    | CreateTask
    | UpdateTask
    | LogEmail
    | UpdateEmail
    | ForgetSubject
    | DefineJob
    | RemoveJob
    | WithdrawJob
    | PauseJob
    | ResumeJob
    | RunJob
    | ClaimTick
    | TakeUpRun
    | RenewRun
    | EndAttempt
    | CreateKey
    | NoteKeyUse
    | RevokeKey
    | StartOrchestrator
    | StopOrchestrator
    | PassTime
)
"""Every command. `service.decide.decide` matches over it exhaustively, with `assert_never`."""

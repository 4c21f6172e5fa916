"""The vocabulary: every kind of event that the log can hold.

An event is a fact, named in the past tense, frozen, and complete in itself: whoever folds it needs no
policy and no clock, because what the decision looked at (the budget day, the end of a claim) is written
into it. Refusals are facts too and stand here beside the things that happened.

Names of types and fields are stored and hashed. They never change; a new shape gets a new
`schema_version` and an upcaster in `eventstore.codec`.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

AgentStatus = Literal["active", "idle", "offline"]
TaskStatus = Literal["new", "in_progress", "completed"]
TaskPriority = Literal["low", "medium", "high", "urgent"]
EmailStatus = Literal["unread", "classified", "draft_created", "sent", "archived"]
OperationOutcome = Literal["succeeded", "failed", "cancelled"]
WarningLevel = Literal["info", "warning", "critical"]
DenialReason = Literal["budget_exhausted", "agent_limit_reached"]
StatusReason = Literal["heartbeat", "activity", "inactivity", "operation_started", "run_ended"]
JobSource = Literal["default", "settings", "api"]
Overlap = Literal["skip", "buffer_one", "cancel_other", "allow_all"]
SkipReason = Literal["overlap", "budget", "conflict", "paused", "shut_down"]
RunOutcome = Literal["succeeded", "failed", "lost"]


class Event(BaseModel):
    """One fact. Its `type` names it in the log; its `stream` says whose history it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ClassVar[str]
    schema_version: ClassVar[int] = 1

    @property
    def stream(self) -> str:
        """The stream that the event belongs to, such as `operation-<id>`."""
        raise NotImplementedError


# Agents -----------------------------------------------------------------------------------------------


class _AgentEvent(Event):
    agent: str

    @property
    def stream(self) -> str:
        return f"agent-{self.agent}"


class AgentRegistered(_AgentEvent):
    """An agent joined the squad: by its own wish, or (`automatic`) by acting before anybody named it."""

    type: ClassVar[str] = "agent_registered"
    agent_id: str
    role: str
    url: str | None
    priority: int
    automatic: bool


class AgentProfileChanged(_AgentEvent):
    """An agent's role, url or priority was set anew."""

    type: ClassVar[str] = "agent_profile_changed"
    role: str
    url: str | None
    priority: int


class AgentStatusChanged(_AgentEvent):
    """An agent went from one status to another, and why."""

    type: ClassVar[str] = "agent_status_changed"
    previous: AgentStatus
    status: AgentStatus
    reason: StatusReason


class AgentHeartbeatRecorded(_AgentEvent):
    """An agent said that it lives. Recorded only where that moves `last_active` noticeably."""

    type: ClassVar[str] = "agent_heartbeat_recorded"


# Messages ---------------------------------------------------------------------------------------------


class _MessageEvent(Event):
    message_id: str

    @property
    def stream(self) -> str:
        return f"message-{self.message_id}"


class MessageSent(_MessageEvent):
    """A message went from one agent to another, or (`to_agent` None) to all."""

    type: ClassVar[str] = "message_sent"
    agent: str
    to_agent: str | None
    message: str
    task_id: str | None
    data: dict[str, Any] | None


class MessageAcknowledged(_MessageEvent):
    """An agent has dealt with a message; it leaves that agent's inbox."""

    type: ClassVar[str] = "message_acknowledged"
    agent: str


# Operations -------------------------------------------------------------------------------------------


class _OperationEvent(Event):
    operation_id: str

    @property
    def stream(self) -> str:
        return f"operation-{self.operation_id}"


class OperationStarted(_OperationEvent):
    """An agent claimed every resource it names. The event's position is the claim's fencing token."""

    type: ClassVar[str] = "operation_started"
    agent: str
    action: str
    resources: dict[str, str]
    ttl_seconds: float
    blocks_until: datetime
    expires_at: datetime


class OperationRenewed(_OperationEvent):
    """The holder is still at it: the conflict window and the time to live start again."""

    type: ClassVar[str] = "operation_renewed"
    agent: str
    blocks_until: datetime
    expires_at: datetime


class OperationFinished(_OperationEvent):
    """The holder ended its operation and gave its claims back."""

    type: ClassVar[str] = "operation_finished"
    agent: str
    outcome: OperationOutcome
    tokens_used: int | None


class OperationExpired(_OperationEvent):
    """Nobody renewed the operation in its time to live; its claims are void."""

    type: ClassVar[str] = "operation_expired"
    agent: str


class ConflictDetected(_OperationEvent):
    """A claim was refused because `operation_id` holds one of its resources."""

    type: ClassVar[str] = "conflict_detected"
    conflict_id: str
    agent: str
    action: str
    resources: dict[str, str]
    contested: dict[str, str]
    holders: list[str]
    holder_action: str


# Budget -----------------------------------------------------------------------------------------------


class PolicySet(Event):
    """The rules that hold from here on, all of them, so that one event tells the whole policy."""

    type: ClassVar[str] = "policy_set"
    daily_tokens: int
    agent_limits: dict[str, int]
    warning_percents: list[int]
    reset_hour: int
    timezone: str
    conflict_window_seconds: float
    operation_timeout_seconds: float
    idle_after_minutes: float
    offline_after_minutes: float
    day: date | None
    """The budget day whose total this changes; None where no day goes on under these rules."""

    @property
    def stream(self) -> str:
        """There is one policy."""
        return "policy"


class _BudgetEvent(Event):
    day: date

    @property
    def stream(self) -> str:
        return f"budget-{self.day.isoformat()}"


class _ReservationEvent(Event):
    day: date
    reservation_id: str

    @property
    def stream(self) -> str:
        return f"reservation-{self.reservation_id}"


class TokensReserved(_ReservationEvent):
    """Tokens were set aside for an agent until `expires_at`."""

    type: ClassVar[str] = "tokens_reserved"
    agent: str
    tokens: int
    expires_at: datetime


class TokensSettled(_ReservationEvent):
    """A reservation ended with what was really used, counted on the day of the reservation."""

    type: ClassVar[str] = "tokens_settled"
    agent: str
    tokens_reserved: int
    tokens_used: int


class TokensReleased(_ReservationEvent):
    """A reservation ended unused: given back, or run out of time."""

    type: ClassVar[str] = "tokens_released"
    agent: str
    tokens_reserved: int
    reason: Literal["released", "expired"]


class TokensUsed(_BudgetEvent):
    """Tokens were spent. A fact, recorded even beyond the budget."""

    type: ClassVar[str] = "tokens_used"
    agent: str
    tokens: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    model: str | None = None
    operation_id: str | None = None
    task_id: str | None = None


class TokensDenied(_BudgetEvent):
    """A reservation was refused: the day's budget, or the agent's share of it, did not allow it."""

    type: ClassVar[str] = "tokens_denied"
    agent: str
    tokens: int
    reason: DenialReason
    remaining: int


class BudgetThresholdCrossed(_BudgetEvent):
    """The day's use passed a percentage of the budget, for the first time that day."""

    type: ClassVar[str] = "budget_threshold_crossed"
    percent: int
    level: WarningLevel
    used: int
    total: int


class BudgetDayReset(_BudgetEvent):
    """A budget day began. It closes the one before, and says what that one used."""

    type: ClassVar[str] = "budget_day_reset"
    starts_at: datetime
    ends_at: datetime
    total: int
    previous_day: date | None
    previous_used: int
    previous_total: int
    previous_agents: dict[str, int]


# Tasks and e-mails ------------------------------------------------------------------------------------


class _TaskEvent(Event):
    task_id: str

    @property
    def stream(self) -> str:
        return f"task-{self.task_id}"


class TaskCreated(_TaskEvent):
    """A task was put on the board."""

    type: ClassVar[str] = "task_created"
    title: str
    description: str | None
    status: TaskStatus
    assigned_agent: str | None
    priority: TaskPriority
    deliverable_url: str | None


class TaskUpdated(_TaskEvent):
    """A task changed. It holds the whole task as it now is; `changed` names the fields that differ."""

    type: ClassVar[str] = "task_updated"
    title: str
    description: str | None
    status: TaskStatus
    assigned_agent: str | None
    priority: TaskPriority
    deliverable_url: str | None
    changed: list[str]


class _EmailEvent(Event):
    email_id: str

    @property
    def stream(self) -> str:
        return f"email-{self.email_id}"


class EmailReceived(_EmailEvent):
    """An e-mail was logged, once for each Gmail message id."""

    type: ClassVar[str] = "email_received"
    gmail_message_id: str
    from_email: str
    subject: str | None
    category: str
    status: EmailStatus
    handled_by: str | None
    payload: dict[str, Any] | None


class EmailUpdated(_EmailEvent):
    """An e-mail was classified, drafted, sent, handed over. `changed` names the fields that differ."""

    type: ClassVar[str] = "email_updated"
    category: str
    status: EmailStatus
    handled_by: str | None
    payload: dict[str, Any] | None
    changed: list[str]


# The orchestrator and the log itself -------------------------------------------------------------------


class _OrchestratorEvent(Event):
    @property
    def stream(self) -> str:
        return "orchestrator"


class OrchestratorStarted(_OrchestratorEvent):
    """Jobs may fire and agents may be called."""

    type: ClassVar[str] = "orchestrator_started"


class OrchestratorStopped(_OrchestratorEvent):
    """No job fires and no agent is called until the orchestrator is started again."""

    type: ClassVar[str] = "orchestrator_stopped"


class RequestAnswered(Event):
    """The first answer to a request that bore an idempotency key; it is given again to every repeat."""

    type: ClassVar[str] = "request_answered"
    key: str
    fingerprint: str
    status: int
    body: dict[str, Any]

    @property
    def stream(self) -> str:
        """One stream a key, so that the log itself refuses a second first answer."""
        return f"request-{self.key}"


class AppendAbandoned(Event):
    """A connection broke during a commit that then proved not to have happened.

    Appending this moves the head, so whatever of that commit may still be on its way comes too late.
    """

    type: ClassVar[str] = "append_abandoned"
    first_event_id: str
    events: int

    @property
    def stream(self) -> str:
        """One stream an abandoned append, so that nobody has to remember the version of a shared one."""
        return f"append-{self.first_event_id}"


# Jobs and their runs ----------------------------------------------------------------------------------


class JobDefinition(BaseModel):
    """What a job does and when. Durations in seconds; either `cron` or `every_seconds`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str | None
    endpoint: str | None
    task: str | None
    cron: str | None
    every_seconds: float | None
    timezone: str
    tokens: int
    timeout_seconds: float
    retries: int
    overlap: Overlap
    catch_up_seconds: float
    jitter_seconds: float
    pause_on_failure: bool
    enabled: bool


class _JobEvent(Event):
    job: str

    @property
    def stream(self) -> str:
        return f"job-{self.job}"


class JobDefined(_JobEvent):
    """A job was put on the schedule, or changed; it holds the whole job as it now is."""

    type: ClassVar[str] = "job_defined"
    source: JobSource
    definition: JobDefinition


class JobRemoved(_JobEvent):
    """A job was taken off the schedule."""

    type: ClassVar[str] = "job_removed"


class JobPaused(_JobEvent):
    """A job's ticks are skipped from here on: somebody said so, or a run failed that was to pause it."""

    type: ClassVar[str] = "job_paused"
    reason: Literal["manual", "failure"]
    note: str | None


class JobResumed(_JobEvent):
    """A job's ticks run again."""

    type: ClassVar[str] = "job_resumed"
    note: str | None


class TickBuffered(_JobEvent):
    """A tick came while the job was running; it runs as soon as that is over."""

    type: ClassVar[str] = "tick_buffered"
    tick: datetime


class _RunEvent(Event):
    run_id: str
    job: str

    @property
    def stream(self) -> str:
        return f"run-{self.run_id}"


class RunMissed(_RunEvent):
    """Nobody was there for a tick, and for longer than the job's catch-up time."""

    type: ClassVar[str] = "run_missed"
    tick: datetime


class RunSkipped(_RunEvent):
    """A tick did not run, and why."""

    type: ClassVar[str] = "run_skipped"
    tick: datetime
    reason: SkipReason
    detail: str


class RunStarted(_RunEvent):
    """A tick was claimed by one process, `runner`, until `lease_expires_at`."""

    type: ClassVar[str] = "run_started"
    agent: str | None
    tick: datetime
    manual: bool
    runner: str
    attempts_allowed: int
    lease_expires_at: datetime
    reservation_id: str | None


class RunRenewed(_RunEvent):
    """The process is still at it."""

    type: ClassVar[str] = "run_renewed"
    lease_expires_at: datetime


class RunAttemptFailed(_RunEvent):
    """An attempt failed; the next begins at `retry_at`, by whichever process is first."""

    type: ClassVar[str] = "run_attempt_failed"
    attempt: int
    reason: str
    retry_at: datetime


class RunRetried(_RunEvent):
    """A process took up the next attempt: after a failure, or because the lease of the last one ran out."""

    type: ClassVar[str] = "run_retried"
    attempt: int
    runner: str
    lease_expires_at: datetime
    lease_ran_out: bool


class RunFinished(_RunEvent):
    """How a run ended. `lost`: its process vanished, and no attempt was left."""

    type: ClassVar[str] = "run_finished"
    agent: str | None
    outcome: RunOutcome
    attempts: int
    reason: str | None
    tokens_used: int | None


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
    | RequestAnswered
    | AppendAbandoned
)
"""Every event. A `match` over it ends with `assert_never`, so a new kind cannot be forgotten."""

"""The models of answers to reads, and what all answers share; `write_answers` has those to writes.

The OpenAPI document is generated from these models, and tests check the answers against them.
"""

from __future__ import annotations

from datetime import date, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from eventstore.events import OperationOutcome
from projections.agents import AgentRow
from projections.budgets import PolicyRow, ReservationRow
from projections.emails import EmailRow
from projections.jobs import JobRow
from projections.messages import MessageRow
from projections.operations import ConflictRow, OperationRow
from projections.orchestrator import OrchestratorRow
from projections.runs import RunRow
from projections.tasks import TaskRow
from service.documented import Documented
from service.http.problems import KINDS
from service.views import INNER_OF_JOBS

if TYPE_CHECKING:
    from collections.abc import Collection


_PLACE_OF_RUN = """\
The position of the event that began the run, or recorded that the tick got none. It places the run in the
list and never changes. The agent's calls carry another token, which grows with each attempt: that of the
claim on the job's resources (the `fencing_token` of the operation `operation_id`) or on the e-mail, or else
the position at which the attempt began. Compare calls with one another, never with this."""


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")


@cache
def page_of(model: type[BaseModel], cursor: type[int | str | date] = int) -> type[BaseModel]:
    """Return the model of a page of these items. `cursor` is the type of `next`."""
    fields: dict[str, Any] = {"items": (list[model], ...), "next": (cursor | None, ...)}  # type: ignore[valid-type]
    return create_model(
        f"{model.__name__}Page",
        __base__=Answer,
        __doc__="A page of a list. Pass `next` as `after` for the following page; it is null on the last.",
        **fields,
    )


def page_by_name(model: type[BaseModel]) -> type[BaseModel]:
    """Return the model of a page of these items, listed by name."""
    return page_of(model, str)


def _of_row(
    name: str, row: type[Any], *, but: Collection[str] = (), doc: str | None = None, **more: Any
) -> type[BaseModel]:
    """Return a model with a row's columns, without those in `but`, and with more fields."""
    kinds = {column: kind for column, kind in row.__annotations__.items() if column not in but}
    fields: dict[str, Any] = {field: (kind, ...) for field, kind in {**kinds, **more}.items()}
    return create_model(
        name, __base__=Answer, __doc__=doc or row.__doc__, __module__=row.__module__, **fields
    )


Agent = _of_row("Agent", AgentRow)
Message = _of_row("Message", MessageRow)
Operation = _of_row("Operation", OperationRow)
ConflictEntry = _of_row("ConflictEntry", ConflictRow)
Task = _of_row("Task", TaskRow)
Email = _of_row("Email", EmailRow)


class Acknowledgement(Answer):
    """Which agent acknowledged a message, and when."""

    agent: str
    acknowledged_at: datetime
    position: int


MessageWithAcknowledgements = _of_row(
    "MessageWithAcknowledgements",
    MessageRow,
    doc="A message, and the first 1,000 acknowledgements of it.",
    acknowledgements=list[Acknowledgement],
)


class Conflict(Answer):
    """The operation in the way."""

    operation_id: str
    agents: list[str]
    action: str
    resources: dict[str, str]
    contested: dict[str, str]
    started_at: datetime
    blocks_until: datetime
    expires_at: datetime
    position: int


class OperationChecked(Answer):
    """Whether a claim would conflict now."""

    conflict: Conflict | None


class AgentBudget(Answer):
    """One agent's part of the day's budget. Without a limit, only the squad's budget bounds it."""

    used: int
    reserved: int
    limit: int | None
    remaining: int | None


class Budget(Answer):
    """The day's budget. `remaining` is neither used nor reserved."""

    period: date
    total: int
    used: int
    reserved: int
    remaining: int
    resets_at: datetime
    agents: dict[str, AgentBudget]


class Usage(Answer):
    """Tokens that were used, and those that are reserved."""

    used: int
    reserved: int


class BudgetDay(Answer):
    """A budget day, named after its local start date. `closed_at` is null until the next one begins."""

    day: date
    total: int
    used: int
    reserved: int
    starts_at: datetime
    ends_at: datetime
    closed_at: datetime | None
    agents: dict[str, Usage]
    """By the name of each agent that used or reserved tokens of the day."""


class TokenUsage(Answer):
    """Tokens that an agent used on a day with one model; `model` is null where none was named.

    Of `tokens`, `input_tokens` and `output_tokens` are those that were reported as such.
    """

    day: date
    agent: str
    model: str | None
    tokens: int
    input_tokens: int
    output_tokens: int


class BudgetChecked(Answer):
    """Whether a reservation would be granted now, and how much the agent may still take today."""

    allowed: bool
    reason: str | None
    remaining: int


Run = _of_row("Run", RunRow, fencing_token=Annotated[int, Field(description=_PLACE_OF_RUN)])


PlannedJob = _of_row(
    "PlannedJob",
    JobRow,
    but=INNER_OF_JOBS,
    doc="A job, with its next five ticks.",
    next_ticks=list[datetime],
)


class Job(PlannedJob):  # type: ignore[valid-type,misc]
    """A job, with its last five runs, newest first, and its next five ticks."""

    last_runs: list[Run]  # type: ignore[valid-type]


class LoggedEvent(Answer):
    """An event of the log; `hash` is in hexadecimal.

    `data` depends on the type: that of a `task_created` is a `TaskCreatedData`, and so on. An old event may
    have a lower `schema_version` and other fields.
    """

    position: int
    id: str
    stream: str
    version: int
    type: str
    schema_version: int
    data: dict[str, Any]
    actor: str
    caused_by: int | None
    correlation_id: str
    idempotency_key: str | None
    recorded_at: datetime
    hash: str


Orchestrator = _of_row("Orchestrator", OrchestratorRow, but=("name",))
Reservation = _of_row("Reservation", ReservationRow)
Rules = _of_row("Rules", PolicyRow, but=("name",))


class SquadState(Answer):
    """The squad after the event at `position`: everything active or open, and nothing that has ended.

    `moment` is the time that was asked for; the jobs' next ticks come after it. What did not exist yet is
    null.
    """

    position: int
    recorded_at: datetime | None
    moment: datetime | None
    orchestrator: Orchestrator | None  # type: ignore[valid-type]
    policy: Rules | None  # type: ignore[valid-type]
    budget: Budget | None
    agents: list[Agent]  # type: ignore[valid-type]
    operations: list[Operation]  # type: ignore[valid-type]
    reservations: list[Reservation]  # type: ignore[valid-type]
    jobs: list[PlannedJob]  # type: ignore[valid-type]
    runs: list[Run]  # type: ignore[valid-type]
    tasks: list[Task]  # type: ignore[valid-type]
    emails: list[Email]  # type: ignore[valid-type]


class BatchResult(Answer):
    """The result of one command of a batch."""

    status: int
    body: dict[str, Any]


class BatchDone(Answer):
    """One result per command, in their order."""

    results: list[BatchResult]


class FieldFault(BaseModel):
    """A wrong field, and what is allowed."""

    field: str
    message: str


def _codes(schema: dict[str, Any]) -> None:
    """List the codes of problems in a schema that allows others, for clients that are older than a code."""
    del schema["type"]
    schema["anyOf"] = [{"type": "string", "enum": sorted(KINDS)}, {"type": "string"}]


class ProblemDetails(Documented):
    """An error (RFC 9457). `code` is stable, and determines which of the further fields are present."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    """What is wrong, for people; the wording may change."""
    code: str = Field(json_schema_extra=_codes)
    """What is wrong, for programs. Later versions may add codes."""
    errors: list[FieldFault] | None = None
    """For `validation_failed`: the wrong fields."""
    position: int | None = None
    """The position of the event that records the refusal, if one does."""
    retry_after_seconds: int | None = None
    """The same as the header Retry-After."""
    conflict: Conflict | None = None
    """For `conflict`: the operation in the way."""
    run_id: str | None = None
    """For `job_running`: the run in progress."""
    remaining: int | None = None
    """For a refused reservation or run: how much the agent may still take today."""
    resets_at: datetime | None = None
    """For a refused reservation or run: when the next budget day begins."""
    expired_at: datetime | None = None
    """For `operation_expired` and `reservation_expired`: when it expired."""
    outcome: OperationOutcome | None = None
    """For `operation_finished`: how the operation ended."""
    state: Literal["settled", "released"] | None = None
    """For `reservation_ended`: how it ended; only what it was settled with counts as used."""
    tokens_used: int | None = None
    """For `reservation_ended`: what it was settled with; null if it was released."""
    email_id: str | None = None
    """For `email_exists`: the id under which the e-mail is logged."""
    current_position: int | None = None
    """For `changed`: the position of the last change. Read with it as `min_position` to see that change."""
    in_plain: int | None = None
    """For `subject_in_plain`: how many e-mails or messages are in the log unencrypted."""
    covered: int | None = None
    """For `not_yet`: the position that an answer would cover now."""
    ends_at: int | None = None
    """For `not_yet`: the end of the log, if the log ends before the requested position."""

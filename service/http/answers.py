"""What reads are answered with, and what all answers have in common; `written` has those of writes.

The OpenAPI document is made from these models, and tests hold the answers to them.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, create_model

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
from service.views import INNER_OF_JOBS

if TYPE_CHECKING:
    from collections.abc import Collection


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")


T = TypeVar("T")


class Page(Answer, Generic[T]):
    """A page of a list. `next` goes into `after` for the following page; null on the last."""

    items: list[T]
    next: int | None


class PageByName(Answer, Generic[T]):
    """A page of a list by name. `next` goes into `after` for the following page; null on the last."""

    items: list[T]
    next: str | None


def page_by_name(model: type[BaseModel]) -> type[BaseModel]:
    """The model of a page of such items, which are listed by name."""
    page: type[BaseModel] = PageByName[model]  # type: ignore[valid-type]
    page.__doc__ = PageByName.__doc__
    return page


def page_of(model: type[BaseModel]) -> type[BaseModel]:
    """The model of a page of such items."""
    page: type[BaseModel] = Page[model]  # type: ignore[valid-type]
    page.__doc__ = Page.__doc__
    return page


def _of_row(
    name: str, row: type[Any], *, but: Collection[str] = (), doc: str | None = None, **more: Any
) -> type[BaseModel]:
    """A model with a row's columns, without those in `but`, and with more fields."""
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
    """One agent's part of the day. Without a limit nothing but the squad's budget bounds it."""

    used: int
    reserved: int
    limit: int | None
    remaining: int | None


class Budget(Answer):
    """The day's budget. `remaining` is what is neither used nor reserved."""

    period: date
    total: int
    used: int
    reserved: int
    remaining: int
    resets_at: datetime
    agents: dict[str, AgentBudget]


class BudgetChecked(Answer):
    """Whether a reservation would be granted now, and what the agent may still take of the day."""

    allowed: bool
    reason: str | None
    remaining: int


Run = _of_row("Run", RunRow)


PlannedJob = _of_row(
    "PlannedJob",
    JobRow,
    but=INNER_OF_JOBS,
    doc="A job, with its next five ticks.",
    next_ticks=list[datetime],
)


class Job(PlannedJob):  # type: ignore[valid-type,misc]
    """A job, with its last five runs, the newest first, and its next five ticks."""

    last_runs: list[Run]  # type: ignore[valid-type]


class LoggedEvent(Answer):
    """An event of the log. `data` depends on the type; `hash` is in hexadecimal."""

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
    """The squad after the event at `position`: all that was active or open, and nothing that was over.

    `moment` is what was asked for, and what the jobs' next ticks follow. Before the first event, and where
    there was none yet, things are null.
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
    """What came of one command of a batch."""

    status: int
    body: dict[str, Any]


class BatchDone(Answer):
    """One result for each command, in their order."""

    results: list[BatchResult]


class FieldFault(BaseModel):
    """A field that is wrong, and what is allowed."""

    field: str
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457. `code` is stable, and which of the further fields are there depends on it."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: str
    title: str
    status: int
    detail: str
    """What is wrong, in words for a person; they may change."""
    code: str
    """What is wrong, for a program."""
    errors: list[FieldFault] | None = None
    """Of `validation_failed`: what is wrong with which fields."""
    position: int | None = None
    """Of the event that records the refusal, where one does."""
    retry_after_seconds: int | None = None
    """The same as the header Retry-After."""
    conflict: Conflict | None = None
    """Of `conflict`: the operation in the way."""
    run_id: str | None = None
    """Of `job_running`: the run that is under way."""
    remaining: int | None = None
    """Of a refused reservation or run: what the agent may still take of the day."""
    resets_at: datetime | None = None
    """Of a refused reservation or run: when the next budget day begins."""
    expired_at: datetime | None = None
    """Of what has expired: since when."""
    outcome: OperationOutcome | None = None
    """Of `operation_finished`: how it ended."""
    email_id: str | None = None
    """Of `email_exists`: the id under which the e-mail is logged."""
    in_plain: int | None = None
    """Of `subject_in_plain`: how many e-mails or messages are in the log unencrypted."""
    covered: int | None = None
    """Of `not_yet`: the position that an answer would cover by now."""
    ends_at: int | None = None
    """Of `not_yet`: where the log ends, where it ends before the position that was asked for."""

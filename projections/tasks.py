"""squad_tasks: the task board."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from eventstore.events import TaskCreated, TaskPriority, TaskStatus, TaskUpdated
from projections.projection import Projection, Row, Table, key_in, require

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View


class TaskRow(Row, frozen=True):
    """A task. `created_position` is its place on the board, `position` is that of its last change."""

    id: str
    title: str
    description: str | None
    status: TaskStatus
    assigned_agent: str | None
    priority: TaskPriority
    deliverable_url: str | None
    created_at: datetime
    updated_at: datetime
    created_position: int
    position: int


TASKS = Table[str, TaskRow](
    "squad_tasks",
    TaskRow,
    key=("id",),
    types=(
        "uuid",
        "text",
        "text",
        "text",
        "text",
        "text",
        "text",
        "timestamptz",
        "timestamptz",
        "bigint",
        "bigint",
    ),
    large_columns=("title", "description", "deliverable_url"),
)

tasks = Projection("tasks", (TASKS,))


@tasks.on(TaskCreated, creates=(key_in(TASKS, "task_id"),))
def _created(view: View, event: TaskCreated, recorded: AnyRecorded) -> None:
    row = TaskRow(
        event.task_id,
        event.title,
        event.description,
        event.status,
        event.assigned_agent,
        event.priority,
        event.deliverable_url,
        recorded.recorded_at,
        recorded.recorded_at,
        recorded.position,
        recorded.position,
    )
    view.rows(TASKS).put(event.task_id, row)


@tasks.on(TaskUpdated, reads=(key_in(TASKS, "task_id"),))
def _updated(view: View, event: TaskUpdated, recorded: AnyRecorded) -> None:
    row = require(view, TASKS, event.task_id).replaced(
        title=event.title,
        description=event.description,
        status=event.status,
        assigned_agent=event.assigned_agent,
        priority=event.priority,
        deliverable_url=event.deliverable_url,
        updated_at=recorded.recorded_at,
        position=recorded.position,
    )
    view.rows(TASKS).put(event.task_id, row)

"""Decisions about the task board."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.events import TaskCreated, TaskUpdated
from eventstore.recorded import NewEvent
from projections.tasks import TASKS
from service.decide.conditions import has_changed, refuse_changed
from service.decide.decision import Accepted, Decision, DecisionContext, Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from service.commands import CreateTask, UpdateTask
    from service.memory.state import State

_FIELDS = ("title", "description", "status", "assigned_agent", "priority", "deliverable_url")


def create(state: State, command: CreateTask, at: DecisionContext) -> Decision:
    """Put a task on the board."""
    del state  # a new task depends on nothing
    task_id = at.new_id()
    fields = {name: getattr(command, name) for name in _FIELDS}
    reply = {"id": task_id, **fields, "created_at": at.now, "updated_at": at.now}
    return Accepted([NewEvent(TaskCreated(task_id=task_id, **fields))], reply)


def update(state: State, command: UpdateTask, at: DecisionContext) -> Decision:
    """Change the named fields of a task; any change of status is allowed."""
    row = state.rows(TASKS).get(command.task_id)
    if row is None:
        return Refused(Refusal("task_not_found", f"there is no task {command.task_id}"))
    if has_changed(row, command):
        return refuse_changed("task", row)
    before = {name: getattr(row, name) for name in _FIELDS}
    after = {**before, **command.changes}
    reply = {"id": row.id, **after, "created_at": row.created_at}
    changed = [name for name in _FIELDS if after[name] != before[name]]
    if not changed:
        return Accepted([], {**reply, "updated_at": row.updated_at, "position": row.position})
    updated = TaskUpdated(task_id=row.id, **after, changed=changed)
    return Accepted([NewEvent(updated, caused_by=row.position)], {**reply, "updated_at": at.now})

"""Commands about tasks."""

from __future__ import annotations

from typing import Any

from eventstore.events import TaskPriority, TaskStatus
from service.commands.base import UNCONDITIONAL, Command, named_fields
from service.values import Id, Name, Position, ShortText, Text, Url


class CreateTask(Command):
    """Put a task on the board."""

    title: ShortText
    description: Text | None = None
    status: TaskStatus = "new"
    assigned_agent: Name | None = None
    priority: TaskPriority = "medium"
    deliverable_url: Url | None = None


class UpdateTask(Command):
    """Change the named fields of a task."""

    task_id: Id
    title: ShortText = ""
    description: Text | None = None
    status: TaskStatus = "new"
    assigned_agent: Name | None = None
    priority: TaskPriority = "medium"
    deliverable_url: Url | None = None
    if_position: Position = UNCONDITIONAL
    """The task's `position` as last read. If the task has changed since, the change is refused."""

    @property
    def changes(self) -> dict[str, Any]:
        """The named fields; None clears a field."""
        return named_fields(self, "task_id", "if_position")

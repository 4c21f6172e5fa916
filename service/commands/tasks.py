"""What can be asked about tasks."""

from __future__ import annotations

from typing import Any

from eventstore.events import TaskPriority, TaskStatus
from service.commands.base import Command, named_fields
from service.values import Id, Name, ShortText, Text, Url


class CreateTask(Command):
    """Put a task on the board."""

    title: ShortText
    description: Text | None = None
    status: TaskStatus = "new"
    assigned_agent: Name | None = None
    priority: TaskPriority = "medium"
    deliverable_url: Url | None = None


class UpdateTask(Command):
    """Change what is named of a task."""

    task_id: Id
    title: ShortText = ""
    description: Text | None = None
    status: TaskStatus = "new"
    assigned_agent: Name | None = None
    priority: TaskPriority = "medium"
    deliverable_url: Url | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that were named, None where one is to be cleared."""
        return named_fields(self, "task_id")

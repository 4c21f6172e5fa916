"""The events of tasks."""

from __future__ import annotations

from typing import ClassVar, Literal

from eventstore.events.base import Event

TaskStatus = Literal["new", "in_progress", "completed"]
TaskPriority = Literal["low", "medium", "high", "urgent"]


class _TaskEvent(Event, frozen=True, kw_only=True):
    task_id: str

    @property
    def stream(self) -> str:
        return f"task-{self.task_id}"


class TaskCreated(_TaskEvent, frozen=True, kw_only=True):
    """A task was added to the board."""

    type: ClassVar[str] = "task_created"
    title: str
    description: str | None
    status: TaskStatus
    assigned_agent: str | None
    priority: TaskPriority
    deliverable_url: str | None


class TaskUpdated(_TaskEvent, frozen=True, kw_only=True):
    """A task changed. The event has the whole task; `changed` names the fields that changed."""

    type: ClassVar[str] = "task_updated"
    title: str
    description: str | None
    status: TaskStatus
    assigned_agent: str | None
    priority: TaskPriority
    deliverable_url: str | None
    changed: list[str]

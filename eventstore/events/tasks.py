"""The events of tasks."""

from __future__ import annotations

from typing import ClassVar, Literal

from eventstore.events.base import Event

TaskStatus = Literal["new", "in_progress", "completed"]
TaskPriority = Literal["low", "medium", "high", "urgent"]


class _TaskEvent(Event, frozen=True, kw_only=True):
    task_id: str
    """The task's id in `squad_tasks`."""

    @property
    def stream(self) -> str:
        return f"task-{self.task_id}"


class TaskCreated(_TaskEvent, frozen=True, kw_only=True):
    """A task was added to the board."""

    type: ClassVar[str] = "task_created"
    title: str
    """What is to be done, in brief."""
    description: str | None
    """What is to be done, at length."""
    status: TaskStatus
    """How far the work is."""
    assigned_agent: str | None
    """The agent that is to do it."""
    priority: TaskPriority
    """How urgent it is."""
    deliverable_url: str | None
    """Where the result is."""


class TaskUpdated(_TaskEvent, frozen=True, kw_only=True):
    """A task changed. The event has the whole task; `changed` names the fields that changed."""

    type: ClassVar[str] = "task_updated"
    title: str
    """What is to be done, in brief."""
    description: str | None
    """What is to be done, at length."""
    status: TaskStatus
    """How far the work is."""
    assigned_agent: str | None
    """The agent that is to do it."""
    priority: TaskPriority
    """How urgent it is."""
    deliverable_url: str | None
    """Where the result is."""
    changed: list[str]
    """The names of the fields that changed."""

"""The task board."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.events import TaskPriority, TaskStatus
from projections.tasks import TASKS, tasks
from service import commands as do
from service.http import answers, write_answers
from service.http.lists import ListQuery, NameOrNobody, OneOf, Query, one_row, page_of_rows
from service.http.route import Route, write
from service.http.scope import Scope
from service.values import Id

if TYPE_CHECKING:
    from aiohttp import web

    from service.http.context import Services
    from service.http.reply import Reply


class TaskQuery(ListQuery):
    """Filters of the task board."""

    status: OneOf[TaskStatus] | None = None
    """Only tasks with this status, or with one of several, separated by commas."""
    priority: OneOf[TaskPriority] | None = None
    """Only tasks with this priority, or with one of several, separated by commas."""
    assigned_agent: NameOrNobody | None = None
    """Only this agent's tasks; if it is empty, only tasks that are assigned to nobody."""


async def _list(services: Services, request: web.Request) -> Reply:
    return await page_of_rows(services, request, TaskQuery, tasks, TASKS, order="created_position")


async def _one(services: Services, request: web.Request) -> Reply:
    return await one_row(services, request, tasks, TASKS, "task_not_found", "task")


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/tasks",
        name="list_tasks",
        summary="Tasks, oldest or newest first",
        tag="tasks",
        scope=Scope.READ,
        handler=_list,
        query=TaskQuery,
        answers={200: answers.page_of(answers.Task)},
        problems=("not_yet",),
    ),
    write(
        "POST",
        "/api/v1/tasks",
        do.CreateTask,
        "Create a task",
        tag="tasks",
        scope=Scope.ACT,
        status=201,
        answer=write_answers.TaskWritten,
    ),
    Route(
        method="GET",
        path="/api/v1/tasks/{id}",
        name="get_task",
        summary="One task",
        tag="tasks",
        scope=Scope.READ,
        handler=_one,
        query=Query,
        path_types={"id": Id},
        answers={200: answers.Task},
        problems=("task_not_found", "not_yet"),
    ),
    write(
        "PATCH",
        "/api/v1/tasks/{id}",
        do.UpdateTask,
        "Change the given fields of a task",
        tag="tasks",
        scope=Scope.ACT,
        bound={"id": "task_id"},
        answer=write_answers.TaskWritten,
        problems=("task_not_found", "changed"),
    ),
)

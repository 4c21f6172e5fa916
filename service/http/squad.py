"""The seed's facade: `/api/squad`, as the seed's users and their scripts know it, camelCase included.

Its errors are the seed's too: `{"error", "details"}`. It runs the same commands as /api/v1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from psycopg import sql
from pydantic import BaseModel, ValidationError

from projections import storage
from projections.agents import AGENTS
from projections.messages import MESSAGES, messages
from projections.projection import Projection, Table
from projections.tasks import TASKS, tasks
from service import commands as do
from service import views
from service.http import seed_views
from service.http.chunks import respond_long
from service.http.context import MAX_CACHED_QUERIES, Services, body_of, parse_object, query_of
from service.http.json import dumps
from service.http.lists import PAGE_BYTES, fitting
from service.http.problems import Problem, field_errors, from_refusal
from service.http.reply import Reply
from service.http.route import Route
from service.http.scope import Scope, own_agent
from service.http.seed import (
    Done,
    MessageBody,
    OrchestratorStatus,
    SeedError,
    SquadOverview,
    SquadQuery,
    SwitchBody,
    TaskBody,
    TaskChangeBody,
)
from service.http.submitting import carry_out, headers_of, request_from_http
from service.http.v1.messages import OWN
from service.lazy_rows import listed
from service.requests import Answer, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web
    from orjson import Fragment

    from projections.agents import AgentRow
    from service.memory.state import State

NEWEST_BYTES = PAGE_BYTES // 2
"""The maximum size of either list; together they are no larger than a page of other lists."""

M = TypeVar("M", bound=BaseModel)


class _Newest(NamedTuple):
    """A list of a table's newest rows."""

    projection: Projection
    table: Table[Any, Any]
    limit: int
    order: str
    """The column with the position that orders them."""
    agents: tuple[str, ...]
    """The columns to filter by agent; one of them must match."""
    own: sql.Composable | None = None
    """The rows that an agent's key may see; None for all."""


_TASKS = _Newest(tasks, TASKS, 100, "created_position", ("assigned_agent",))
_MESSAGES = _Newest(messages, MESSAGES, 50, "position", ("from_agent", "to_agent"), OWN)


def _show_problem(problem: Problem) -> Reply:
    details = problem.body.get("errors") or {
        key: value for key, value in problem.body.items() if key not in ("type", "title", "status")
    }
    status = 400 if problem.code == "validation_failed" else problem.status
    headers = dict(problem.headers)
    if "retry_after_seconds" in problem.body:
        headers["Retry-After"] = str(problem.body["retry_after_seconds"])
    body = {"error": problem.body["detail"], "details": details}
    return Reply(status, dumps(body), headers=headers)


def _validate(model: type[M], fields: Any) -> M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        faults = field_errors(error)
        missing = [item["field"] for item in faults if item["message"] == "field required"]
        summary = f"Missing required fields: {', '.join(missing)}" if missing else "Invalid fields"
        raise Problem("validation_failed", summary, errors=faults) from error


# GET --------------------------------------------------------------------------------------------------


async def _get(services: Services, request: web.Request) -> Reply | web.StreamResponse:
    query = _parsed(request.rel_url.raw_query_string)
    if query.action is None:
        return await respond_long(services, request, await _everything(services, query))
    if query.action != "orchestrator-status":
        fault = {"field": "action", "message": "must be orchestrator-status, or omitted"}
        raise Problem("validation_failed", f"Unknown action: {query.action}", errors=[fault])
    squad = services.writer.squad
    if squad.orchestrator is None or not squad.orchestrator.running:
        body = {
            "error": "Orchestrator is not running",
            "details": "POST the action orchestrator-init to start it",
        }
        return Reply(503, dumps(body))
    now = services.clock.now()
    return await respond_long(services, request, lambda: seed_views.status(squad, now))


@lru_cache(maxsize=MAX_CACHED_QUERIES)
def _parsed(query_string: str) -> SquadQuery:
    return _validate(SquadQuery, dict(query_of(query_string)))


async def _everything(services: Services, query: SquadQuery) -> Callable[[], dict[str, Any]]:
    squad = services.writer.squad
    names = None if query.agent_type is None and query.agent_name is None else _names(squad, query)
    tasks_shown = await _rows(services, _TASKS, query, names)
    activity = await _rows(services, _MESSAGES, query, names)
    squad, now = services.writer.squad, services.clock.now()

    def make() -> dict[str, Any]:
        agents = [
            row
            for row in views.agents(squad)
            if query.agent_type in (None, row.role) and query.agent_name in (None, row.name)
        ]
        return {
            "tasks": tasks_shown,
            "activity": activity,
            "agents": listed(agents, _show_agent),
            "orchestrator": seed_views.orchestrator(squad, now),
        }

    return make


def _show_agent(row: AgentRow) -> dict[str, Any]:
    return {column: getattr(row, column) for column in ("id", "name", "role", "status", "last_active")}


def _names(squad: State, query: SquadQuery) -> list[str]:
    """Return the names of the agents that the filters select; one named there need not be registered."""
    if query.agent_type is None:
        return [query.agent_name or ""]
    return [
        row.name
        for row in squad.all(AGENTS)
        if row.role == query.agent_type and query.agent_name in (None, row.name)
    ]


async def _rows(
    services: Services, newest: _Newest, query: SquadQuery, names: list[str] | None
) -> list[Fragment]:
    """Return the rows of a list that fit, newest first; `names` are the selected agents, None for all."""
    clauses: list[sql.Composable] = [sql.SQL("true")]
    order = sql.Identifier(newest.order)
    parameters: dict[str, Any] = {"limit": newest.limit, "names": names, "mine": own_agent()}
    if newest.own is not None and own_agent():
        clauses.append(newest.own)
    # By position, as there is no index by time; time never goes backwards along the log.
    for name, comparison, moment in (("since", ">", query.since), ("until", "<=", query.until)):
        if moment:
            clause = f"{{}} {comparison} position_at(%({name})s::timestamptz - interval '1 microsecond')"
            clauses.append(sql.SQL(clause).format(order))
            parameters[name] = moment
    if names is not None:
        either = (sql.SQL("{} = ANY(%(names)s)").format(sql.Identifier(column)) for column in newest.agents)
        clauses.append(sql.SQL("({})").format(sql.SQL(" OR ").join(either)))
    where = sql.SQL("WHERE {} ORDER BY {} DESC LIMIT %(limit)s").format(
        sql.SQL(" AND ").join(clauses), order
    )
    async with services.tables.covering(newest.projection, None) as connection:
        rows = await storage.select(connection, newest.table, where, parameters)
    return fitting((row.asdict() for row in rows), newest.limit, NEWEST_BYTES)[0]


# POST and PATCH -----------------------------------------------------------------------------------------


async def _post(services: Services, request: web.Request) -> Reply:
    body = await body_of(request)
    fields = parse_object(body)
    action = fields.get("action")
    match action:
        case "orchestrator-init":
            return await _do(services, request, body, do.StartOrchestrator(), "Orchestrator initialized")
        case "orchestrator-shutdown":
            return await _do(services, request, body, do.StopOrchestrator(), "Orchestrator shut down")
        case "orchestrator-message":
            message = do.SendMessage(**_validate(MessageBody, fields).model_dump(exclude={"action"}))
            return await _do(services, request, body, message, "Message sent")
        case None:
            task = do.CreateTask(**_validate(TaskBody, fields).model_dump())
            return await _do(services, request, body, task, "Task created", entity="task")
        case _:
            known = "orchestrator-init, orchestrator-shutdown or orchestrator-message"
            fault = {"field": "action", "message": f"must be {known}"}
            raise Problem("validation_failed", "Unknown action", errors=[fault])


async def _patch(services: Services, request: web.Request) -> Reply:
    body = await body_of(request)
    change = _validate(TaskChangeBody, parse_object(body))
    named = {name: getattr(change, name) for name in change.model_fields_set - {"id"}}
    command = do.UpdateTask(task_id=change.id, **named)
    return await _do(services, request, body, command, "Task updated", entity="task")


async def _do(
    services: Services,
    request: web.Request,
    body: bytes,
    command: do.AnyCommand,
    message: str,
    *,
    entity: str | None = None,
) -> Reply:
    asked = request_from_http(request, body, command, _rendering(message, entity))
    answer = await carry_out(services, asked)
    return Reply(answer.status, dumps(answer.body), headers=headers_of(answer))


def _rendering(message: str, entity: str | None) -> Callable[[Outcome], Answer]:
    def render(outcome: Outcome) -> Answer:
        if outcome.refusal:
            problem = from_refusal(outcome.refusal, outcome.position)
            return Answer(
                problem.status, {"error": problem.body["detail"], "details": {"code": problem.code}}
            )
        reply = {key: value for key, value in outcome.reply.items() if key != "position"}
        shown = {entity: reply} if entity else {key: reply[key] for key in ("id",) if key in reply}
        return Answer(200, {"success": True, "message": message, "position": outcome.position, **shown})

    return render


ROUTES = (
    Route(
        method="GET",
        path="/api/squad",
        name="get_squad",
        summary="The squad at a glance; with action=orchestrator-status, the orchestrator alone",
        tag="squad",
        scope=Scope.READ,
        handler=_get,
        query=SquadQuery,
        answers={200: (SquadOverview, OrchestratorStatus), 503: SeedError},
        show_problem=_show_problem,
    ),
    Route(
        method="POST",
        path="/api/squad",
        name="command_squad",
        summary="Start or shut down the orchestrator, send a message, or create a task",
        tag="squad",
        scope=Scope.ACT,
        handler=_post,
        body=(SwitchBody, MessageBody, TaskBody),
        answers={200: Done},
        show_problem=_show_problem,
    ),
    Route(
        method="PATCH",
        path="/api/squad",
        name="update_squad_task",
        summary="Change a task",
        tag="squad",
        scope=Scope.ACT,
        handler=_patch,
        body=TaskChangeBody,
        answers={200: Done},
        problems=("task_not_found",),
        show_problem=_show_problem,
    ),
)

"""Operations: claims on resources, and the conflicts that they prevent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from projections.operations import CONFLICTS, OPERATIONS, OperationState, operations
from service import commands as do
from service import views
from service.decide.operations import describe, find_conflict
from service.http import answers, write_answers
from service.http.context import Services, body_of, parse_command, parse_object, parse_query
from service.http.lists import ListQuery, OneOf, Query, one_row, page, page_of_rows
from service.http.reply import Reply, respond
from service.http.route import Route, write
from service.http.scope import Scope, require_own
from service.values import Id, Name

if TYPE_CHECKING:
    from aiohttp import web


class OperationQuery(ListQuery):
    """Filters of the list of operations."""

    state: OneOf[OperationState] | None = None
    """Only operations in this state, or in one of several, separated by commas."""
    agent: Name | None = None
    """Only this agent's operations."""


class ConflictQuery(ListQuery):
    """Filters of the list of conflicts."""

    agent: Name | None = None
    """Only this agent's refused claims."""


async def _check(services: Services, request: web.Request) -> Reply:
    command = parse_command(do.CheckOperation, parse_object(await body_of(request)))
    require_own(command.agent, "an agent may ask only about itself")
    conflict = find_conflict(services.writer.squad, command.resources, services.clock.now())
    return respond(200, {"conflict": describe(conflict) if conflict else None})


async def _list(services: Services, request: web.Request) -> Reply:
    query = parse_query(OperationQuery, request)
    if query.state != ("active",) or query.newest_first or query.since or query.until:
        return await page_of_rows(
            services, request, OperationQuery, operations, OPERATIONS, order="fencing_token"
        )
    # Active operations are in memory, which never lags.
    await services.tables.wait_for_state(query.min_position)
    squad, agent = services.writer.squad, query.agent
    rows = views.active_operations(squad) if agent is None else views.operations_of(squad, agent)
    shown = (row.asdict() for row in rows if row.fencing_token > query.after)
    return respond(200, page(shown, query.limit, "fencing_token"))


async def _one(services: Services, request: web.Request) -> Reply:
    return await one_row(services, request, operations, OPERATIONS, "operation_not_found", "operation")


async def _conflicts(services: Services, request: web.Request) -> Reply:
    return await page_of_rows(services, request, ConflictQuery, operations, CONFLICTS)


ROUTES = (
    Route(
        method="POST",
        path="/api/v1/operations/check",
        name="check_operation",
        summary="Ask whether a claim would conflict; changes nothing",
        tag="operations",
        scope=Scope.READ,
        handler=_check,
        body=do.CheckOperation,
        answers={200: answers.OperationChecked},
        problems=("wrong_agent",),
    ),
    write(
        "POST",
        "/api/v1/operations",
        do.StartOperation,
        "Claim resources for a piece of work",
        tag="operations",
        scope=Scope.ACT,
        status=201,
        answer=write_answers.Claimed,
        problems=("conflict",),
    ),
    write(
        "POST",
        "/api/v1/operations/{id}/heartbeat",
        do.RenewOperation,
        "Report that the work continues, and renew its claim",
        tag="operations",
        scope=Scope.ACT,
        bound={"id": "operation_id"},
        answer=write_answers.Renewed,
        problems=("operation_not_found", "operation_expired", "operation_finished", "conflict"),
    ),
    write(
        "POST",
        "/api/v1/operations/{id}/finish",
        do.FinishOperation,
        "Finish the operation and release its claims",
        tag="operations",
        scope=Scope.ACT,
        bound={"id": "operation_id"},
        answer=write_answers.Finished,
        problems=("operation_not_found", "operation_expired", "operation_finished"),
    ),
    Route(
        method="GET",
        path="/api/v1/operations",
        name="list_operations",
        summary="Operations, oldest or newest first",
        tag="operations",
        scope=Scope.READ,
        handler=_list,
        query=OperationQuery,
        answers={200: answers.page_of(answers.Operation)},
        problems=("not_yet",),
    ),
    Route(
        method="GET",
        # A GET of /operations/check is not allowed, and must not pass for one of an id.
        path="/api/v1/operations/{id:(?!check$)[^/]+}",
        name="get_operation",
        summary="One operation",
        tag="operations",
        scope=Scope.READ,
        handler=_one,
        query=Query,
        path_types={"id": Id},
        answers={200: answers.Operation},
        problems=("operation_not_found", "not_yet"),
    ),
    Route(
        method="GET",
        path="/api/v1/conflicts",
        name="list_conflicts",
        summary="Refused claims, oldest or newest first",
        tag="operations",
        scope=Scope.READ,
        handler=_conflicts,
        query=ConflictQuery,
        answers={200: answers.page_of(answers.ConflictEntry)},
        problems=("not_yet",),
    ),
)

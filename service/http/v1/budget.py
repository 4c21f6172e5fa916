"""The budget: what may be spent, what is reserved, what has been spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service import commands as do
from service import views
from service.decide.budget import allowance
from service.http import answers, write_answers
from service.http.chunks import respond_long
from service.http.context import Services, body_of, parse_command, parse_object, parse_query
from service.http.lists import Query
from service.http.problems import Problem
from service.http.reply import Reply, respond
from service.http.route import Route, write
from service.http.scope import Scope, require_own

if TYPE_CHECKING:
    from aiohttp import web

    from service.memory.state import State


async def _show(services: Services, request: web.Request) -> Reply | web.StreamResponse:
    query = parse_query(Query, request)
    await services.tables.wait_for_state(query.min_position)
    return await respond_long(services, request, lambda: views.budget(_state_on_a_budget_day(services)))


async def _check(services: Services, request: web.Request) -> Reply:
    command = parse_command(do.CheckBudget, parse_object(await body_of(request)))
    require_own(command.agent, "an agent may ask only about itself")
    state = _state_on_a_budget_day(services)
    assert state.day
    judged = allowance(state, state.day, command.agent, command.tokens)
    return respond(
        200, {"allowed": judged.denied is None, "reason": judged.denied, "remaining": judged.remaining}
    )


def _state_on_a_budget_day(services: Services) -> State:
    """Return the state.

    Raises:
        Problem: the first budget day has not begun yet.
    """
    squad = services.writer.squad
    if squad.day is None:
        raise Problem("unavailable", "the service is starting", retry_after_seconds=1)
    return squad


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/budget",
        summary="The day's budget, as a whole and by agent",
        tag="budget",
        scope=Scope.READ,
        handler=_show,
        query=Query,
        answers={200: answers.Budget},
        problems=("not_yet",),
    ),
    write(
        "PUT",
        "/api/v1/budget",
        do.SetBudget,
        "Change the daily budget, the agents' limits, or both",
        tag="budget",
        scope=Scope.OPERATE,
        answer=write_answers.Policy,
    ),
    Route(
        method="POST",
        path="/api/v1/budget/check",
        summary="Ask whether a reservation would be granted; changes nothing",
        tag="budget",
        scope=Scope.READ,
        handler=_check,
        body=do.CheckBudget,
        answers={200: answers.BudgetChecked},
        problems=("wrong_agent",),
    ),
    write(
        "POST",
        "/api/v1/budget/reservations",
        do.ReserveTokens,
        "Reserve tokens before spending them",
        tag="budget",
        scope=Scope.ACT,
        status=201,
        answer=write_answers.Reserved,
        problems=("budget_exhausted", "agent_limit_reached"),
    ),
    write(
        "POST",
        "/api/v1/budget/reservations/{id}/settle",
        do.SettleReservation,
        "Settle a reservation with the tokens that were used",
        tag="budget",
        scope=Scope.ACT,
        bound={"id": "reservation_id"},
        answer=write_answers.Settled,
        problems=("reservation_not_found", "reservation_expired", "reservation_ended"),
    ),
    write(
        "DELETE",
        "/api/v1/budget/reservations/{id}",
        do.ReleaseReservation,
        "Release a reservation unused",
        tag="budget",
        scope=Scope.ACT,
        bound={"id": "reservation_id"},
        answer=write_answers.Released,
        problems=("reservation_not_found", "reservation_expired", "reservation_ended"),
    ),
    write(
        "POST",
        "/api/v1/budget/usage",
        do.RecordUsage,
        "Record tokens that were spent; never refused",
        tag="budget",
        scope=Scope.ACT,
        status=201,
        answer=write_answers.UsageTaken,
    ),
)

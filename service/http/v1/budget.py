"""The budget: what may be spent, what is reserved, what has been spent."""

from __future__ import annotations

from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from projections.budgets import RESERVATIONS
from service import commands as do
from service import views
from service.decide.allowance import allowance
from service.decide.budget import refusal_if_ended
from service.history import recall
from service.http import answers, write_answers
from service.http.chunks import respond_long
from service.http.context import (
    Services,
    body_of,
    parse_command,
    parse_object,
    parse_path,
    parse_query,
)
from service.http.lists import PageQuery, Query, page
from service.http.problems import Problem, from_refusal
from service.http.reply import Reply, respond
from service.http.route import Route, write
from service.http.scope import Scope, require_own
from service.memory.draft import Draft
from service.values import Id, Name

if TYPE_CHECKING:
    from aiohttp import web

    from projections.budgets import ReservationRow
    from service.memory.state import State

_ID: TypeAdapter[str] = TypeAdapter(Id)


class ReservationQuery(PageQuery):
    """Filters of the list of reservations."""

    agent: Name | None = None
    """Only this agent's reservations."""


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


async def _list(services: Services, request: web.Request) -> Reply:
    query = parse_query(ReservationQuery, request)
    await services.tables.wait_for_state(query.min_position)
    now = services.clock.now()
    rows = (
        row
        for row in services.writer.squad.all(RESERVATIONS)
        if row.position > query.after and query.agent in (None, row.agent) and row.expires_at > now
    )
    selected = nsmallest(query.limit + 1, rows, key=attrgetter("position"))
    return respond(200, page((row.asdict() for row in selected), query.limit))


async def _one(services: Services, request: web.Request) -> Reply:
    query = parse_query(Query, request)
    id_ = parse_path(_ID, request, "id")
    await services.tables.wait_for_state(query.min_position)
    # One that has ended is not in memory any more; how it ended is answered as a settlement would be.
    row = services.writer.squad.rows(RESERVATIONS).get(id_) or await _recalled(services, id_)
    if refusal := refusal_if_ended(row, id_, services.clock.now()):
        raise from_refusal(refusal, None)
    assert row is not None
    return respond(200, row.asdict())


async def _recalled(services: Services, reservation_id: str) -> ReservationRow | None:
    """Return a reservation that is not in memory, as the log has it."""
    draft = Draft(services.writer.squad)
    async with services.tables.connection() as connection:
        history = await recall.read_revealed_streams(connection, [f"reservation-{reservation_id}"])
    recall.fold(draft, history)
    return draft.rows(RESERVATIONS).get(reservation_id)


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
        name="get_budget",
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
        name="check_budget",
        summary="Ask whether a reservation would be granted; changes nothing",
        tag="budget",
        scope=Scope.READ,
        handler=_check,
        body=do.CheckBudget,
        answers={200: answers.BudgetChecked},
        problems=("wrong_agent",),
    ),
    Route(
        method="GET",
        path="/api/v1/budget/reservations",
        name="list_reservations",
        summary="Open reservations, oldest first",
        tag="budget",
        scope=Scope.READ,
        handler=_list,
        query=ReservationQuery,
        answers={200: answers.page_of(answers.Reservation)},
        problems=("not_yet",),
    ),
    Route(
        method="GET",
        path="/api/v1/budget/reservations/{id}",
        name="get_reservation",
        summary="One open reservation; of one that has ended, how it ended, as a settlement is told",
        tag="budget",
        scope=Scope.READ,
        handler=_one,
        query=Query,
        path_types={"id": Id},
        answers={200: answers.Reservation},
        problems=("reservation_not_found", "reservation_expired", "reservation_ended", "not_yet"),
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

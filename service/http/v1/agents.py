"""Agents: registration, status and heartbeats."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from projections.agents import AGENTS
from service import commands as do
from service.http import answers, write_answers
from service.http.context import Services, parse_path, parse_query
from service.http.lists import PageByName, Query, page
from service.http.problems import Problem
from service.http.reply import Reply, respond
from service.http.route import Route, write
from service.http.scope import Scope
from service.values import Name

if TYPE_CHECKING:
    from aiohttp import web


_NAME: TypeAdapter[str] = TypeAdapter(Name)


async def _list(services: Services, request: web.Request) -> Reply:
    query = parse_query(PageByName, request)
    await services.tables.wait_for_state(query.min_position)
    squad, after = services.writer.squad, query.after or ""
    rows = (row for row in squad.all(AGENTS) if row.name > after)
    selected = nsmallest(query.limit + 1, rows, key=lambda row: row.name)
    return respond(200, page((row.asdict() for row in selected), query.limit, "name"))


async def _one(services: Services, request: web.Request) -> Reply:
    query = parse_query(Query, request)
    await services.tables.wait_for_state(query.min_position)
    name = parse_path(_NAME, request, "name")
    row = services.writer.squad.rows(AGENTS).get(name)
    if row is None:
        raise Problem("agent_not_found", f"no agent is called {name!r}")
    return respond(200, row.asdict())


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/agents",
        name="list_agents",
        summary="All agents, by name",
        tag="agents",
        scope=Scope.READ,
        handler=_list,
        query=PageByName,
        answers={200: answers.page_by_name(answers.Agent)},
        problems=("not_yet",),
    ),
    Route(
        method="GET",
        path="/api/v1/agents/{name}",
        name="get_agent",
        summary="One agent",
        tag="agents",
        scope=Scope.READ,
        handler=_one,
        query=Query,
        path_types={"name": Name},
        answers={200: answers.Agent},
        problems=("agent_not_found", "not_yet"),
    ),
    write(
        "PUT",
        "/api/v1/agents/{name}",
        do.RegisterAgent,
        "Register an agent, or replace its role, URL and priority",
        tag="agents",
        scope=Scope.ACT,
        bound={"name": "name"},
        answer=write_answers.AgentWritten,
    ),
    write(
        "POST",
        "/api/v1/agents/{name}/heartbeat",
        do.Heartbeat,
        "Report that an agent is alive, and its status",
        tag="agents",
        scope=Scope.ACT,
        bound={"name": "agent"},
        answer=write_answers.HeartbeatTaken,
        name="send_heartbeat",
        problems=("agent_not_found",),
    ),
)

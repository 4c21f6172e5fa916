"""The route table, and the application that serves it."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from typing import Any

from aiohttp import hdrs, web

from service.http import health, squad
from service.http.context import MAX_BODY_BYTES, SERVICES, Services
from service.http.openapi import document
from service.http.reply import Reply, respond
from service.http.route import Media, Route
from service.http.scope import Scope
from service.http.v1 import (
    agents,
    batch,
    budget,
    budget_days,
    emails,
    events,
    explain,
    inbox,
    jobs,
    messages,
    operations,
    state,
    subjects,
    tasks,
    token_usage,
    whatif,
)
from service.version import VERSION

_V1 = (
    *agents.ROUTES,
    *messages.ROUTES,
    *inbox.ROUTES,
    *operations.ROUTES,
    *budget.ROUTES,
    *budget_days.ROUTES,
    *token_usage.ROUTES,
    *tasks.ROUTES,
    *emails.ROUTES,
    *jobs.ROUTES,
    *subjects.ROUTES,
    *state.ROUTES,
    *events.ROUTES,
    *explain.ROUTES,
    *whatif.ROUTES,
)


async def _openapi(services: Services, request: web.Request) -> Reply:
    del services, request
    # Making it takes a tenth of a second. Neither a start nor the commands of others must wait for it.
    return respond(200, await asyncio.to_thread(openapi))


ROUTES: tuple[Route, ...] = (
    *squad.ROUTES,
    *_V1,
    batch.route_for(_V1),
    *health.ROUTES,
    Route(
        method="GET",
        path="/openapi.json",
        name="get_openapi",
        summary="This document",
        tag="health",
        scope=Scope.PUBLIC,
        handler=_openapi,
        answers={200: Media("application/json", "OpenAPI 3.1")},
    ),
)


@cache
def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of all routes, made on demand because CLI commands never need it."""
    return document(ROUTES, VERSION)


def _methods(route: Route) -> tuple[str, ...]:
    """Return a route's methods: with GET also HEAD, unless the answer never ends."""
    return (
        (route.method, hdrs.METH_HEAD) if route.method == hdrs.METH_GET and route.ends else (route.method,)
    )


def application(services: Services) -> web.Application:
    """Return the HTTP application over the running parts."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[SERVICES] = services
    for route in ROUTES:
        # aiohttp's default pattern for a parameter excludes braces, which a name may contain.
        path = re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", route.path)
        # aiohttp passes a `Reply` on unchanged to `Connection.finish_response`.
        for method in _methods(route):
            app.router.add_route(method, path, route.__call__)  # type: ignore[arg-type]
    return app

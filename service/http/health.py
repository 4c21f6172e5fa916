"""Is it alive, is it ready, and what has it counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from eventstore.errors import EventStoreError
from service import metrics
from service.http.context import Services, respond
from service.http.json import dumps
from service.http.route import Route

PROBE_SECONDS = 2.0
"""How long the database may take."""

STUCK_AFTER_SECONDS = 10.0
"""How long a projection may stand still while the log goes on."""

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROJECTIONS = """
    SELECT name, position, failed_position, error,
           extract(epoch FROM clock_timestamp() - updated_at) AS age,
           (SELECT coalesce(max(position), 0) FROM events) AS head
    FROM projections ORDER BY name
"""


async def _alive(services: Services, request: web.Request) -> web.StreamResponse:
    del services, request
    return respond(200, {"status": "alive"})


async def _ready(services: Services, request: web.Request) -> web.StreamResponse:
    del request
    checks: dict[str, Mapping[str, Any]] = {
        "database": {"ok": False},
        "writer": {"ok": services.writer.ready, "problem": services.writer.problem},
        "listener": {"ok": services.listener.hearing},
        "projections": {"ok": False},
    }
    try:
        async with asyncio.timeout(PROBE_SECONDS), services.tables.connection() as connection:
            cursor = await connection.execute(_PROJECTIONS)
            rows = await cursor.fetchall()
    except (TimeoutError, EventStoreError) as error:
        checks["database"] = {"ok": False, "problem": str(error) or "no answer in time"}
    else:
        checks["database"] = {"ok": True}
        checks["projections"] = _judge(rows)
    ready = all(check["ok"] for check in checks.values()) and not services.stopping
    body = {"ready": ready, "stopping": services.stopping, "checks": checks}
    return web.Response(status=200 if ready else 503, body=dumps(body), content_type="application/json")


def _judge(rows: list[tuple[Any, ...]]) -> Mapping[str, Any]:
    shown = {}
    for name, position, failed_position, error, age, head in rows:
        stuck = position < head and float(age) > STUCK_AFTER_SECONDS
        shown[name] = {
            "position": position,
            "lag": head - position,
            "ok": not stuck and failed_position is None,
        }
        if failed_position is not None:
            shown[name] |= {"failed_position": failed_position, "error": error}
    return {"ok": bool(shown) and all(entry["ok"] for entry in shown.values()), "by_name": shown}


async def _metrics(services: Services, request: web.Request) -> web.StreamResponse:
    del request
    return web.Response(body=services.metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})


ROUTES = (
    Route(
        method="GET",
        path="/healthz",
        summary="Whether the process is alive",
        tag="health",
        handler=_alive,
        answers={200: None},
        while_stopping=True,
    ),
    Route(
        method="GET",
        path="/readyz",
        summary="Whether database, listener and projections are well; else which is not",
        tag="health",
        handler=_ready,
        answers={200: None, 503: None},
        while_stopping=True,
    ),
    Route(
        method="GET",
        path="/metrics",
        summary="Counters and gauges for Prometheus",
        tag="health",
        handler=_metrics,
        answers={200: None},
        while_stopping=True,
    ),
)

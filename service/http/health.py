"""Liveness, readiness and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web
from pydantic import Field

from eventstore.errors import EventStoreError
from service import metrics
from service.background import within
from service.http import answers
from service.http.json import dumps
from service.http.reply import Reply, respond
from service.http.route import Media, Route
from service.http.scope import Scope

PROBE_SECONDS = 2.0
"""How long the database may take to answer."""

_STUCK_AFTER_SECONDS = 10
"""How long a projection may make no progress while there are events for it."""

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.http.context import Services
    from service.writing.writer import Writer

# An idle projection makes no progress either, so what counts is how long the next event has been waiting.
_PROJECTIONS = """
    SELECT p.name, p.position, p.failed_position, p.error,
           extract(epoch FROM least(clock_timestamp() - next.recorded_at,
                                    clock_timestamp() - p.updated_at)) AS waited_seconds,
           (SELECT coalesce(max(position), 0) FROM events) AS head
    FROM projections p LEFT JOIN events next ON next.position = p.position + 1
    ORDER BY p.name
"""


async def _alive(services: Services, request: web.Request) -> Reply:
    del services, request
    return respond(200, {"status": "alive"})


async def _ready(services: Services, request: web.Request) -> Reply:
    checks: dict[str, Mapping[str, Any]] = {
        "database": {"ok": False},
        "writer": _judge_writer(services.writer),
        "listener": {"ok": services.listener.hearing, "problem": services.listener.problem},
        "projections": {"ok": False},
    }
    try:
        rows = await within(PROBE_SECONDS, _projections(services))
    except (TimeoutError, EventStoreError) as error:
        checks["database"] = {"ok": False, "problem": str(error) or "no answer in time"}
    else:
        checks["database"] = {"ok": True}
        checks["projections"] = _judge(rows)
    ready = all(check["ok"] for check in checks.values()) and not services.stopping
    if not services.authenticator.has_full_access(request):
        # A problem's text may name database hosts and users, so strangers only see which check failed.
        checks = {name: {"ok": check["ok"]} for name, check in checks.items()}
    body = {"ready": ready, "stopping": services.stopping, "checks": checks}
    return Reply(200 if ready else 503, dumps(body))


async def _projections(services: Services) -> list[tuple[Any, ...]]:
    async with services.tables.connection() as connection:
        cursor = await connection.execute(_PROJECTIONS)
        return await cursor.fetchall()


def _judge_writer(writer: Writer) -> Mapping[str, Any]:
    if writer.ready and writer.is_stalled:
        return {"ok": False, "problem": "commands are waiting, but none gets through"}
    return {"ok": writer.ready, "problem": writer.problem}


def _judge(rows: list[tuple[Any, ...]]) -> Mapping[str, Any]:
    shown = {}
    for name, position, failed_position, error, waited_seconds, head in rows:
        stuck = position < head and waited_seconds > _STUCK_AFTER_SECONDS
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


class Alive(answers.Answer):
    """The process is running."""

    status: Literal["alive"]


class Check(answers.Answer):
    """One part of the service."""

    ok: bool
    problem: str | None = None
    """What is wrong, if anything is."""


class ProjectionCheck(answers.Answer):
    """One projection. `lag` is the number of events that it has yet to apply."""

    ok: bool
    position: int
    lag: int
    failed_position: int | None = None
    """The position of the event that it could not apply, if there is one."""
    error: str | None = None


class ProjectionsCheck(answers.Answer):
    """All projections."""

    ok: bool
    by_name: dict[str, ProjectionCheck] = Field(default_factory=dict)


class Checks(answers.Answer):
    """The parts of the service that must work."""

    database: Check
    writer: Check
    listener: Check
    projections: ProjectionsCheck


class Readiness(answers.Answer):
    """Whether the service is ready for requests; if not, which check fails."""

    ready: bool
    stopping: bool
    checks: Checks


ROUTES = (
    Route(
        method="GET",
        path="/healthz",
        name="get_liveness",
        summary="Whether the process is alive",
        tag="health",
        scope=Scope.PUBLIC,
        handler=_alive,
        answers={200: Alive},
        while_stopping=True,
    ),
    Route(
        method="GET",
        path="/readyz",
        name="get_readiness",
        summary="Whether database, writer, listener and projections are working; if not, which is failing",
        tag="health",
        scope=Scope.PUBLIC,
        handler=_ready,
        answers={200: Readiness, 503: Readiness},
        while_stopping=True,
    ),
    Route(
        method="GET",
        path="/metrics",
        name="get_metrics",
        summary="Counters and gauges for Prometheus",
        tag="health",
        scope=Scope.AUDIT,
        handler=_metrics,
        answers={200: Media(metrics.CONTENT_TYPE, "Prometheus' text format")},
        while_stopping=True,
    ),
)

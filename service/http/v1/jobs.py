"""Jobs and their runs: the schedule, its outcomes, and manual control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from projections import storage
from projections.jobs import JOBS, jobs
from projections.runs import RUNS, RunStatus
from service import commands as do
from service import views
from service.http import answers, write_answers
from service.http.context import Services, parse_command, parse_path, parse_query
from service.http.lists import ListQuery, OneOf, PageByName, Query, one_row, page, page_of_rows
from service.http.long_answers import Yielder
from service.http.problems import Problem
from service.http.reply import Reply, respond
from service.http.route import Route, Write, write, write_of
from service.http.scope import Scope
from service.http.submitting import rendering
from service.job_spec import JobSpec
from service.values import Id, Name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiohttp import web

    from projections.jobs import JobRow

SHOWN_RUNS = 5
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class RunNow(BaseModel):
    """An empty object: a job is run as it is defined."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunQuery(ListQuery):
    """Filters of the list of runs."""

    job: Name | None = None
    """Only runs of this job."""
    status: OneOf[RunStatus] | None = None
    """Only runs with this status, or with one of several, separated by commas."""


async def _list(services: Services, request: web.Request) -> Reply:
    query = parse_query(PageByName, request)
    await services.tables.wait_for_state(query.min_position)
    rows = sorted(services.writer.squad.all(JOBS), key=lambda row: row.name)
    selected = [row for row in rows if row.name > (query.after or "")][: query.limit + 1]
    return respond(200, page(await _shown(services, selected, query), query.limit, "name"))


async def _one(services: Services, request: web.Request) -> Reply:
    query = parse_query(Query, request)
    await services.tables.wait_for_state(query.min_position)
    (shown,) = await _shown(services, [_job(services, parse_path(_NAME, request, "name"))], query)
    return respond(200, shown)


def _job(services: Services, name: str) -> JobRow:
    row = services.writer.squad.rows(JOBS).get(name)
    if row is None:
        raise Problem("job_not_found", f"no job is called {name!r}")
    return row


async def _shown(services: Services, rows: Sequence[JobRow], query: Query) -> list[dict[str, Any]]:
    names = [row.name for row in rows]
    async with services.tables.covering(jobs, query.min_position) as connection:
        runs = await storage.newest(connection, RUNS, "job", names, "fencing_token", SHOWN_RUNS)
    shown, now, pauses = [], services.clock.now(), Yielder()
    for row in rows:
        shown.append(views.job(row, [run.asdict() for run in runs.get(row.name, ())], now))
        await pauses.pause()
    return shown


async def _runs(services: Services, request: web.Request) -> Reply:
    return await page_of_rows(services, request, RunQuery, jobs, RUNS, order="fencing_token")


async def _one_run(services: Services, request: web.Request) -> Reply:
    return await one_row(services, request, jobs, RUNS, "run_not_found", "run")


def _define(services: Services, fields: dict[str, Any], in_path: Mapping[str, str]) -> do.DefineJob:
    zone = services.writer.squad.policy.timezone
    spec = parse_command(JobSpec, {"timezone": zone, **fields})
    return parse_command(do.DefineJob, {"source": "api", "definition": spec.definition()}, in_path)


def _run(services: Services, fields: dict[str, Any], in_path: Mapping[str, str]) -> do.RunJob:
    parse_command(RunNow, fields)
    return parse_command(do.RunJob, {"runner": services.scheduler.runner}, in_path)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/jobs",
        name="list_jobs",
        summary="The schedule: each job with its last and next runs",
        tag="jobs",
        scope=Scope.READ,
        handler=_list,
        query=PageByName,
        answers={200: answers.page_by_name(answers.Job)},
        problems=("not_yet",),
    ),
    Route(
        method="GET",
        path="/api/v1/jobs/{name}",
        name="get_job",
        summary="One job, with its last and next runs",
        tag="jobs",
        scope=Scope.READ,
        handler=_one,
        query=Query,
        path_types={"name": Name},
        answers={200: answers.Job},
        problems=("job_not_found", "not_yet"),
    ),
    write_of(
        "PUT",
        "/api/v1/jobs/{name}",
        Write(command=do.DefineJob, make=_define, render=rendering(200)),
        "Define a job, or change it",
        tag="jobs",
        scope=Scope.OPERATE,
        body=JobSpec,
        path_types={"name": Name},
        answers={200: write_answers.JobNamed},
        problems=("agent_not_found", "job_behind"),
    ),
    write(
        "DELETE",
        "/api/v1/jobs/{name}",
        do.RemoveJob,
        "Remove a job from the schedule",
        tag="jobs",
        scope=Scope.OPERATE,
        bound={"name": "name"},
        answer=write_answers.JobNamed,
        problems=("job_not_found", "job_behind"),
    ),
    write_of(
        "POST",
        "/api/v1/jobs/{name}/run",
        Write(command=do.RunJob, make=_run, render=rendering(202)),
        "Run a job now",
        tag="jobs",
        scope=Scope.OPERATE,
        body=RunNow,
        path_types={"name": Name},
        answers={202: write_answers.RunBegun},
        problems=(
            "job_not_found",
            "job_running",
            "conflict",
            "orchestrator_stopped",
            "budget_exhausted",
            "agent_limit_reached",
        ),
    ),
    write(
        "POST",
        "/api/v1/jobs/{name}/pause",
        do.PauseJob,
        "Skip a job's ticks from now on",
        tag="jobs",
        scope=Scope.OPERATE,
        bound={"name": "name"},
        answer=write_answers.JobPaused,
        problems=("job_not_found",),
    ),
    write(
        "POST",
        "/api/v1/jobs/{name}/resume",
        do.ResumeJob,
        "Run a job's ticks again",
        tag="jobs",
        scope=Scope.OPERATE,
        bound={"name": "name"},
        answer=write_answers.JobPaused,
        problems=("job_not_found",),
    ),
    Route(
        method="GET",
        path="/api/v1/runs",
        name="list_runs",
        summary="The outcome of every tick, oldest or newest first",
        tag="jobs",
        scope=Scope.READ,
        handler=_runs,
        query=RunQuery,
        answers={200: answers.page_of(answers.Run)},
        problems=("not_yet",),
    ),
    Route(
        method="GET",
        path="/api/v1/runs/{id}",
        name="get_run",
        summary="One run, or the outcome of a tick that had none",
        tag="jobs",
        scope=Scope.READ,
        handler=_one_run,
        query=Query,
        path_types={"id": Id},
        answers={200: answers.Run},
        problems=("run_not_found", "not_yet"),
    ),
)

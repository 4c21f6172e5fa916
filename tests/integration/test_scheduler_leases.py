"""Several processes run one squad's jobs: no tick is lost or run twice, even if a process dies."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from eventstore.events import RunAttemptFailed, RunFinished, RunRenewed, RunRetried, RunStarted
from projections.jobs import jobs
from projections.runs import RUNS
from service import commands as do
from service.decide import runs
from service.requests import Unavailable
from tests.support.agents import after, answers, when
from tests.support.jobs import define, running_job_process
from tests.support.verify import assert_log_is_sound, fold
from tests.support.wait import eventually

if TYPE_CHECKING:
    from service.requests import Outcome, Request
    from tests.support.agents import Agents

LEASE_SECONDS = 1.0
TICKS = 12


@pytest.fixture
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LEASE_SECONDS", LEASE_SECONDS)


async def test_every_tick_has_exactly_one_run_with_several_processes(agents: Agents, database: str) -> None:
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(running_job_process(database, agents.url, runner=f"runner-{n}"))
            for n in range(3)
        ]
        names = [f"job-{n}" for n in range(4)]
        for name in names:
            # On a slow machine a tick may come while the previous one is running, and must have a run too.
            await define(members[0], name, every="250ms", agent=name, overlap="allow_all")
        await eventually(
            lambda: all(len(members[0].find_events(RunFinished, job=name)) >= TICKS for name in names)
        )
    log = await assert_log_is_sound(database)
    rows = fold(jobs, log)[RUNS.name].values()
    assert len([item for item in log if item.type == "run_started"]) == len(rows) == len(agents.calls)
    for name in names:
        ticks = sorted(row.tick for row in rows if row.job == name)
        assert {later - tick for tick, later in pairwise(ticks)} == {timedelta(milliseconds=250)}
    assert {row.status for row in rows} == {"succeeded"}


@pytest.mark.usefixtures("_short_leases")
async def test_long_run_stays_with_its_process(agents: Agents, database: str) -> None:
    agents.on("/long", after(3 * LEASE_SECONDS))
    async with (
        running_job_process(database, agents.url, runner="one") as one,
        running_job_process(database, agents.url, runner="other") as other,
    ):
        await define(one, "long", retries=3)
        finished = await one.carry_out("long")
        assert (finished.outcome, finished.attempts) == ("succeeded", 1)
        assert len(one.find_events(RunRenewed)) >= 3
        await eventually(lambda: other.find_events(RunFinished))
    assert len(agents.calls) == 1


@pytest.mark.usefixtures("_short_leases")
async def test_run_of_a_dead_process_is_taken_over_by_another_process(
    agents: Agents, database: str
) -> None:
    never = asyncio.Event()
    agents.on("/poll", when(never), answers({"tokens_used": 7}))
    async with (
        running_job_process(database, agents.url, runner="one") as one,
        running_job_process(database, agents.url, runner="other") as other,
    ):
        await define(one, "poll", retries=1, tokens=100)
        run = await one.run_now("poll")
        await eventually(lambda: agents.calls)
        one.crash()
        finished = await other.wait_for_run(run)
        assert (finished.outcome, finished.attempts, finished.tokens_used) == ("succeeded", 2, 7)
        (retried,) = other.find_events(RunRetried)
        assert (retried.runner, retried.attempt, retried.lease_ran_out) == ("other", 2, True)
        assert [call.payload["attempt"] for call in agents.calls] == [1, 2]


@pytest.mark.usefixtures("_short_leases")
async def test_run_of_a_dead_process_is_lost_when_no_attempt_is_left(agents: Agents, database: str) -> None:
    never = asyncio.Event()
    agents.on("/poll", when(never))
    async with (
        running_job_process(database, agents.url, runner="one") as one,
        running_job_process(database, agents.url, runner="other") as other,
    ):
        await define(one, "poll", tokens=100)
        run = await one.run_now("poll")
        await eventually(lambda: agents.calls)
        one.crash()
        finished = await other.wait_for_run(run)
        assert (finished.outcome, finished.reason) == ("lost", "the process that ran it vanished")
        # Its reservation was released, and the job continues.
        day = other.writer.squad.day
        assert day is not None
        assert day.reserved == 0
        agents.on("/poll", answers({}))
        assert (await other.carry_out("poll")).outcome == "succeeded"


async def test_attempt_of_a_stopped_process_fails_and_is_retried_by_another_process(
    agents: Agents, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.2)
    never = asyncio.Event()
    agents.on("/poll", when(never), answers({}))
    async with running_job_process(database, agents.url, runner="other") as other:
        async with running_job_process(database, agents.url, runner="one") as one:
            await define(one, "poll", retries=1)
            run = await one.run_now("poll")
            await eventually(lambda: agents.calls)
        finished = await other.wait_for_run(run)
        (failed,) = other.find_events(RunAttemptFailed)
        assert failed.reason == "the service was stopped"
        assert (finished.outcome, finished.attempts) == ("succeeded", 2)


async def test_stopping_process_lets_a_short_call_finish(agents: Agents, database: str) -> None:
    agents.on("/poll", after(0.5))
    async with running_job_process(database, agents.url, runner="other") as other:
        async with running_job_process(database, agents.url, runner="one") as one:
            await define(one, "poll")
            run = await one.run_now("poll")
            await eventually(lambda: agents.calls)
        assert (await other.wait_for_run(run)).outcome == "succeeded"


async def test_runs_claimed_while_stopping_have_an_outcome(agents: Agents, database: str) -> None:
    async with running_job_process(database, agents.url, runner="one") as one:
        for number in range(20):
            await define(one, f"job-{number}", every="100ms", agent=f"worker-{number}")
        await eventually(lambda: len(one.find_events(RunStarted)) > 50)
        await one.scheduler.stop()
        assert len(one.find_events(RunFinished)) == len(one.find_events(RunStarted))


@pytest.mark.usefixtures("_short_leases")
async def test_process_that_was_cut_off_keeps_a_run_that_nobody_took_over(
    agents: Agents, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease expires meanwhile, but the run is still in progress and nobody else took it over."""
    agents.on("/poll", after(3 * LEASE_SECONDS))
    async with running_job_process(database, agents.url, runner="one") as one:
        submit = one.writer.submit

        async def submit_except_renewals(request: Request, timeout_seconds: float = 20.0) -> Outcome:
            if isinstance(request.command, do.RenewRun):
                raise Unavailable
            return await submit(request, timeout_seconds)

        monkeypatch.setattr(one.writer, "submit", submit_except_renewals)
        await define(one, "poll")
        finished = await one.carry_out("poll")
        assert (finished.outcome, finished.attempts) == ("succeeded", 1)
        assert not one.find_events(RunRenewed)

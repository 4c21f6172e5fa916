"""The outcome of an attempt is recorded even if it is cut short; what is not the job's failure."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from eventstore.events import JobPaused, MessageSent, RunAttemptFailed
from projections.runs import RUNS
from service import commands as do
from service.requests import Unavailable
from service.scheduling import scheduler
from service.scheduling.work import Report, succeeded
from tests.support.agents import when
from tests.support.components import submit
from tests.support.jobs import define
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess

TASK = "status_update"
"""A built-in task that submits a single command, `PassTime`."""


async def test_attempt_succeeds_when_its_deadline_passes_during_its_last_command(
    job_process: JobProcess,
) -> None:
    job_process.call_before(do.PassTime, lambda: asyncio.sleep(0.3))
    await define(job_process, TASK, task=TASK, agent=None, timeout_seconds=0.1)
    assert (await job_process.carry_out(TASK)).outcome == "succeeded"


async def test_outcome_is_recorded_when_the_database_was_unavailable_after_the_deadline(
    job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.MAX_SLEEP_SECONDS", 0.1)
    refusals = 2

    async def refuse() -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise Unavailable

    job_process.call_before(do.PassTime, lambda: asyncio.sleep(0.3))
    job_process.call_before(do.EndAttempt, refuse)
    await define(job_process, TASK, task=TASK, agent=None, timeout_seconds=0.1)
    assert (await job_process.carry_out(TASK)).outcome == "succeeded"


@pytest.mark.parametrize("kind", [do.PassTime, do.EndAttempt])
async def test_outcome_is_recorded_when_the_scheduler_stops_during_the_last_commands(
    job_process: JobProcess, monkeypatch: pytest.MonkeyPatch, kind: type[do.Command]
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.1)
    reached = asyncio.Event()

    async def delay() -> None:
        reached.set()
        await asyncio.sleep(0.4)

    job_process.call_before(kind, delay)
    await define(job_process, TASK, task=TASK, agent=None)
    run = await job_process.run_now(TASK)
    await reached.wait()
    await job_process.scheduler.stop()
    assert (await job_process.wait_for_run(run)).outcome == "succeeded"


async def test_stop_does_not_wait_forever_for_an_outcome_to_be_recorded(
    job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.1)
    monkeypatch.setattr("service.scheduling.scheduler.RELEASE_SECONDS", 0.2)
    reached, may_proceed = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        await may_proceed.wait()

    job_process.call_before(do.EndAttempt, hang)
    await define(job_process, TASK, task=TASK, agent=None)
    run = await job_process.run_now(TASK)
    await reached.wait()
    async with asyncio.timeout(30):
        await job_process.scheduler.stop()
    assert job_process.writer.squad.rows(RUNS).get(run)
    may_proceed.set()
    await eventually(lambda: not job_process.scheduler._tasks)
    assert not job_process.find_events(RunAttemptFailed)


async def test_outcome_is_recorded_without_a_report_that_cannot_be_stored(
    job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def report(_: object) -> Report:
        return succeeded("it is done", quoted="a\x00b")

    monkeypatch.setattr("service.scheduling.scheduler.perform", report)
    await define(job_process, TASK, task=TASK, agent=None)
    finished = await job_process.carry_out(TASK)
    assert finished.outcome == "succeeded"
    (sent,) = job_process.find_events(MessageSent)
    assert sent.message == "it is done"
    assert sent.data == {"job": TASK, "run_id": finished.run_id, "status": "succeeded"}


async def test_stopping_the_scheduler_does_not_pause_the_job(
    agents: Agents, job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.1)
    agents.on("/poll", when(asyncio.Event()))
    await define(job_process, "poll", pause_on_failure=True)
    run = await job_process.run_now("poll")
    await eventually(lambda: agents.calls)
    await job_process.scheduler.stop()
    assert (await job_process.wait_for_run(run)).reason == "the service was stopped"
    assert not job_process.find_events(JobPaused)


async def test_unavailable_database_does_not_pause_the_job(job_process: JobProcess) -> None:
    async def refuse() -> None:
        raise Unavailable

    job_process.call_before(do.PassTime, refuse)
    await define(job_process, TASK, task=TASK, agent=None, pause_on_failure=True)
    finished = await job_process.carry_out(TASK)
    assert finished.reason == "the orchestrator was not available: Unavailable"
    assert not job_process.find_events(JobPaused)


async def test_shutdown_just_before_the_call_does_not_pause_the_job(job_process: JobProcess) -> None:
    await define(job_process, "poll", pause_on_failure=True)
    slots = job_process.scheduler._agent_slots["worker"]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(scheduler.MAX_RUNS_PER_AGENT):
            await stack.enter_async_context(slots)
        run = await job_process.run_now("poll")
        await submit(job_process.writer, do.StopOrchestrator())
    finished = await job_process.wait_for_run(run)
    assert finished.reason == "the orchestrator was shut down"
    assert not job_process.find_events(JobPaused)

"""What happens to ticks that come due while the job is still running, with agents that are really slow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from eventstore.events import JobPaused, RunFinished, RunSkipped, RunStarted, TickBuffered
from service import commands as do
from service.scheduling.scheduler import MAX_RUNS_PER_AGENT
from tests.support.agents import when
from tests.support.components import submit
from tests.support.jobs import define
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess


async def test_skip_skips_ticks_and_names_the_run_in_progress(
    agents: Agents, job_process: JobProcess
) -> None:
    may_answer = asyncio.Event()
    agents.on("/slow", when(may_answer))
    await define(job_process, "slow", every="500ms")
    await eventually(lambda: len(job_process.find_events(RunSkipped)) >= 2)
    first, second = job_process.find_events(RunSkipped)[:2]
    (started,) = job_process.find_events(RunStarted)
    assert first.reason == second.reason == "overlap"
    assert first.detail == f"the run of {started.tick:%Y-%m-%d %H:%M:%S}Z is in progress"
    by_position = {item.position: item for item in job_process.log}
    skipped = next(item for item in job_process.log if item.type == "run_skipped")
    assert skipped.caused_by is not None
    assert by_position[skipped.caused_by].type == "run_started"
    assert len(agents.calls) == 1
    may_answer.set()
    await eventually(lambda: len(job_process.find_events(RunStarted)) > 1, describe="the next tick runs")


async def test_buffer_one_buffers_one_tick_and_skips_the_rest(
    agents: Agents, job_process: JobProcess
) -> None:
    may_answer = asyncio.Event()
    agents.on("/slow", when(may_answer))
    await define(job_process, "slow", every="500ms", overlap="buffer_one")
    await eventually(lambda: len(job_process.find_events(RunSkipped)) >= 2)
    (buffered,) = job_process.find_events(TickBuffered)
    skipped = job_process.find_events(RunSkipped)
    assert all(f"{buffered.tick:%H:%M:%S}Z is already waiting" in item.detail for item in skipped)
    assert all(item.tick > buffered.tick for item in skipped)
    may_answer.set()
    await eventually(lambda: len(job_process.find_events(RunFinished)) >= 2)
    first, second = job_process.find_events(RunStarted)[:2]
    assert first.tick < second.tick == buffered.tick


async def test_cancel_other_ends_the_run_in_progress_and_its_call(
    agents: Agents, job_process: JobProcess
) -> None:
    never = asyncio.Event()
    agents.on("/slow", when(never))
    await define(job_process, "slow", every="500ms", overlap="cancel_other", pause_on_failure=True)
    await eventually(lambda: len(job_process.find_events(RunStarted)) >= 3)
    first, second = job_process.find_events(RunFinished)[:2]
    runs = job_process.find_events(RunStarted)
    assert first.outcome == second.outcome == "failed"
    assert first.reason == f"cancelled by the tick of {runs[1].tick:%Y-%m-%d %H:%M:%S}Z"
    # Being replaced is not a failure.
    assert not job_process.find_events(JobPaused)
    await eventually(lambda: agents.max_in_flight["/slow"] <= 2 and agents.in_flight["/slow"] <= 1)


async def test_allow_all_runs_ticks_concurrently(agents: Agents, job_process: JobProcess) -> None:
    may_answer = asyncio.Event()
    agents.on("/slow", when(may_answer))
    await define(job_process, "slow", every="300ms", overlap="allow_all")
    await eventually(lambda: agents.in_flight["/slow"] >= 3)
    may_answer.set()
    await eventually(lambda: len(job_process.find_events(RunFinished)) >= 3)
    assert {item.outcome for item in job_process.find_events(RunFinished)} == {"succeeded"}
    assert not job_process.find_events(RunSkipped)


async def test_run_now_is_refused_while_a_run_is_in_progress(
    agents: Agents, job_process: JobProcess
) -> None:
    may_answer = asyncio.Event()
    agents.on("/slow", when(may_answer))
    await define(job_process, "slow")
    run = await job_process.run_now("slow")
    again = await submit(job_process.writer, do.RunJob(name="slow", runner="one"))
    assert again.refusal is not None
    assert (again.refusal.code, again.refusal.extra["run_id"]) == ("job_running", run)
    may_answer.set()
    assert (await job_process.wait_for_run(run)).outcome == "succeeded"


async def test_slow_agent_delays_no_other_agent(agents: Agents, job_process: JobProcess) -> None:
    enough = asyncio.Event()
    agents.on("/slow", when(enough))
    await define(job_process, "slow", every="100ms", overlap="allow_all", agent="slow", timeout_seconds=300)
    await eventually(lambda: len(job_process.find_events(RunStarted, job="slow")) > MAX_RUNS_PER_AGENT)
    await define(job_process, "quick", every="500ms", agent="quick")
    await eventually(lambda: len(job_process.find_events(RunFinished, job="quick")) >= 4)
    assert not job_process.find_events(RunFinished, job="slow")
    enough.set()
    await eventually(lambda: job_process.find_events(RunFinished, job="slow"))

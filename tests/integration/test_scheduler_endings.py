"""How an attempt ended is told, also where it is cut short just then; what is no failure of the job."""

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
from tests.support.jobs import define
from tests.support.parts import submit
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.agents import Agents
    from tests.support.jobs import Member

TASK = "status_update"
"""What it does is one command, `PassTime`."""


async def test_a_deadline_that_passes_during_the_last_command_leaves_the_end_to_be_told(
    member: Member,
) -> None:
    member.before(do.PassTime, lambda: asyncio.sleep(0.3))
    await define(member, TASK, task=TASK, agent=None, timeout_seconds=0.1)
    assert (await member.carry_out(TASK)).outcome == "succeeded"


async def test_and_so_does_one_where_the_database_is_away_just_then(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.MAX_SLEEP_SECONDS", 0.1)
    refusals = 2

    async def refuse() -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise Unavailable

    member.before(do.PassTime, lambda: asyncio.sleep(0.3))
    member.before(do.EndAttempt, refuse)
    await define(member, TASK, task=TASK, agent=None, timeout_seconds=0.1)
    assert (await member.carry_out(TASK)).outcome == "succeeded"


@pytest.mark.parametrize("kind", [do.PassTime, do.EndAttempt])
async def test_stopped_during_the_last_command_or_the_word_of_its_end_an_attempt_is_told_of(
    member: Member, monkeypatch: pytest.MonkeyPatch, kind: type[do.Command]
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.1)
    reached = asyncio.Event()

    async def dawdle() -> None:
        reached.set()
        await asyncio.sleep(0.4)

    member.before(kind, dawdle)
    await define(member, TASK, task=TASK, agent=None)
    run = await member.run_now(TASK)
    await reached.wait()
    await member.scheduler.stop()
    assert (await member.finished(run)).outcome == "succeeded"


async def test_a_stop_does_not_wait_for_ever_for_an_end_to_be_heard(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.1)
    monkeypatch.setattr("service.scheduling.scheduler.RELEASE_SECONDS", 0.2)
    reached, heard = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        await heard.wait()

    member.before(do.EndAttempt, hang)
    await define(member, TASK, task=TASK, agent=None)
    run = await member.run_now(TASK)
    await reached.wait()
    async with asyncio.timeout(2.0):
        await member.scheduler.stop()
    assert member.writer.squad.rows(RUNS).get(run)
    heard.set()
    await eventually(lambda: not member.scheduler._tasks)
    assert not member.told(RunAttemptFailed)


async def test_a_report_that_cannot_be_kept_is_left_out_and_the_end_told(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reported(_: object) -> Report:
        return succeeded("it is done", quoted="a\x00b")

    monkeypatch.setattr("service.scheduling.scheduler.perform", reported)
    await define(member, TASK, task=TASK, agent=None)
    finished = await member.carry_out(TASK)
    assert finished.outcome == "succeeded"
    (told,) = member.told(MessageSent)
    assert told.message == "it is done"
    assert told.data == {"job": TASK, "run_id": finished.run_id, "status": "succeeded"}


async def test_a_stop_does_not_pause_the_job(
    agents: Agents, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.1)
    agents.on("/poll", when(asyncio.Event()))
    await define(member, "poll", pause_on_failure=True)
    run = await member.run_now("poll")
    await eventually(lambda: agents.calls)
    await member.scheduler.stop()
    assert (await member.finished(run)).reason == "the service was stopped"
    assert not member.told(JobPaused)


async def test_nor_does_a_database_that_is_away(member: Member) -> None:
    async def refuse() -> None:
        raise Unavailable

    member.before(do.PassTime, refuse)
    await define(member, TASK, task=TASK, agent=None, pause_on_failure=True)
    finished = await member.carry_out(TASK)
    assert finished.reason == "the orchestrator was not available: Unavailable"
    assert not member.told(JobPaused)


async def test_nor_does_a_shut_down_just_before_the_call(member: Member) -> None:
    await define(member, "poll", pause_on_failure=True)
    agent = member.scheduler._agent_slots["worker"]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(scheduler.MAX_RUNS_PER_AGENT):
            await stack.enter_async_context(agent)
        run = await member.run_now("poll")
        await submit(member.writer, do.StopOrchestrator())
    finished = await member.finished(run)
    assert finished.reason == "the orchestrator was shut down"
    assert not member.told(JobPaused)

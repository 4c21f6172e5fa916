"""Jobs with resources, run by real processes: nobody else can claim the resources during a call."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from eventstore.events import (
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    RunAttemptFailed,
    RunFinished,
    RunRenewed,
    RunSkipped,
    RunStarted,
)
from projections.operations import OPERATIONS
from service import commands as do
from service.decide import runs
from service.requests import Unavailable
from tests.support.agents import after, answers, when
from tests.support.components import submit
from tests.support.jobs import define, running_job_process
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from service.requests import Outcome, Request
    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess

LEASE_SECONDS = 1.0
MAILBOX = {"mailbox": "info"}
BOB = do.StartOperation(agent="bob", action="sort", resources=MAILBOX)


@pytest.fixture
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LEASE_SECONDS", LEASE_SECONDS)


async def test_claim_is_kept_through_a_long_call_when_the_conflict_window_is_short(
    agents: Agents, job_process: JobProcess
) -> None:
    """The window is a thirtieth of the lease: a claim renewed only along with the lease would be lost."""
    await submit(job_process.writer, do.SetPolicy(conflict_window_seconds=0.5, operation_timeout_seconds=1))
    may_answer = asyncio.Event()
    agents.on("/long", when(may_answer))
    await define(job_process, "long", resources=MAILBOX)
    run = await job_process.run_now("long")
    await eventually(lambda: agents.calls)
    token = agents.calls[0].payload["fencing_token"]
    [started] = job_process.find_events(OperationStarted)
    assert token == next(item.position for item in job_process.log if item.type == started.type)

    async def bob_was_refused_for_long() -> bool:
        assert (await submit(job_process.writer, BOB)).refusal is not None
        return len(job_process.find_events(OperationRenewed)) >= 12

    await eventually(bob_was_refused_for_long)
    may_answer.set()
    assert (await job_process.wait_for_run(run)).outcome == "succeeded"
    [finished] = job_process.find_events(OperationFinished)
    assert (finished.operation_id, finished.outcome) == (started.operation_id, "succeeded")
    assert len(job_process.find_events(RunRenewed)) == len(job_process.find_events(OperationRenewed))
    assert (await submit(job_process.writer, BOB)).refusal is None


async def test_two_jobs_with_the_same_resources_take_turns(agents: Agents, database: str) -> None:
    for path in ("/one", "/other"):
        agents.on(path, after(0.15))
    async with (
        running_job_process(database, agents.url, runner="one") as one,
        running_job_process(database, agents.url, runner="other") as other,
    ):
        # With different intervals, or the same job would come first every time.
        await define(one, "one", agent="ann", every="300ms", resources=MAILBOX)
        await define(one, "other", agent="ben", every="700ms", resources=MAILBOX)
        await eventually(
            lambda: (
                all(len(one.find_events(RunFinished, job=job)) >= 3 for job in ("one", "other"))
                and one.find_events(RunSkipped, reason="conflict")
            ),
            within_seconds=20,
        )
        assert len(other.find_events(RunSkipped)) == len(one.find_events(RunSkipped))
    assert agents.max_in_flight[""] == 1
    log = await assert_log_is_sound(database)
    by_position = {item.position: item for item in log}
    skipped = [item for item in log if item.type == "run_skipped" and b"conflict" in item.data.encode()]
    assert {by_position[item.caused_by or 0].type for item in skipped} == {"conflict_detected"}


@pytest.mark.usefixtures("_short_leases")
async def test_run_taken_over_from_a_dead_process_claims_with_a_greater_fencing_token(
    agents: Agents, database: str
) -> None:
    never = asyncio.Event()
    agents.on("/poll", when(never), answers({}))
    async with (
        running_job_process(database, agents.url, runner="one") as one,
        running_job_process(database, agents.url, runner="other") as other,
    ):
        await define(one, "poll", retries=1, resources=MAILBOX)
        run = await one.run_now("poll")
        await eventually(lambda: agents.calls)
        one.crash()
        finished = await other.wait_for_run(run)
        assert (finished.outcome, finished.attempts) == ("succeeded", 2)
        assert [item.outcome for item in other.find_events(OperationFinished)] == ["failed", "succeeded"]
        assert not list(other.writer.squad.all(OPERATIONS))
    tokens = [call.payload["fencing_token"] for call in agents.calls]
    assert all(later > token for token, later in pairwise(tokens))


@pytest.mark.usefixtures("_short_leases")
async def test_lost_run_leaves_no_claim(agents: Agents, database: str) -> None:
    never = asyncio.Event()
    agents.on("/poll", when(never))
    async with (
        running_job_process(database, agents.url, runner="one") as one,
        running_job_process(database, agents.url, runner="other") as other,
    ):
        await define(one, "poll", resources=MAILBOX)
        run = await one.run_now("poll")
        await eventually(lambda: agents.calls)
        one.crash()
        assert (await other.wait_for_run(run)).outcome == "lost"
        assert (await submit(other.writer, BOB)).refusal is None


async def test_process_cut_off_for_too_long_loses_the_claim_and_aborts_the_call(
    agents: Agents, job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(job_process.writer, do.SetPolicy(conflict_window_seconds=0.3))
    never, cut_off = asyncio.Event(), asyncio.Event()
    original_submit = job_process.writer.submit

    async def submit_unless_cut_off(request: Request, timeout_seconds: float = 20.0) -> Outcome:
        if isinstance(request.command, do.RenewRun) and cut_off.is_set():
            raise Unavailable
        return await original_submit(request, timeout_seconds)

    monkeypatch.setattr(job_process.writer, "submit", submit_unless_cut_off)
    agents.on("/poll", when(never), answers({}))
    await define(job_process, "poll", resources=MAILBOX, retries=3)
    run = await job_process.run_now("poll")
    await eventually(lambda: agents.calls)
    cut_off.set()
    held: list[str] = []

    async def bob_claims_it() -> bool:
        outcome = await submit(job_process.writer, BOB)
        held.append(outcome.reply.get("id", ""))
        return outcome.refusal is None

    await eventually(bob_claims_it)
    cut_off.clear()
    failed = await eventually(lambda: job_process.find_events(RunAttemptFailed))
    assert failed[0].reason == "conflict: 'bob' has claimed mailbox info for 'sort'"
    await eventually(lambda: not agents.in_flight["/poll"], describe="the call is aborted")
    await submit(job_process.writer, do.FinishOperation(operation_id=held[-1], outcome="succeeded"))
    finished = await job_process.wait_for_run(run)
    assert finished.outcome == "succeeded"
    assert finished.attempts > 1
    assert not list(job_process.writer.squad.all(OPERATIONS))


async def test_stopped_process_releases_the_claim(
    agents: Agents, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.2)
    never = asyncio.Event()
    agents.on("/poll", when(never))
    async with running_job_process(database, agents.url, runner="other") as other:
        async with running_job_process(database, agents.url, runner="one") as one:
            await define(one, "poll", resources=MAILBOX)
            await one.run_now("poll")
            await eventually(lambda: agents.calls)
        await eventually(lambda: other.find_events(RunFinished))
        assert (await submit(other.writer, BOB)).refusal is None
    assert other.find_events(RunStarted)

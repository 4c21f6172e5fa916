"""E-mail jobs poll, classify and answer within the budget, and release everything however they end."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from time import time
from typing import TYPE_CHECKING

import pytest

from eventstore.events import (
    MessageSent,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    RunFinished,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from examples.email_agent.signature import verify
from projections.agents import AGENTS
from service import commands as do
from service.requests import CommandFailed
from service.scheduling.email_work import CLASSIFY_ENDPOINT, RESPOND_ENDPOINT
from service.scheduling.job_tasks import POLL_ENDPOINT
from tests.support.agents import after, answers, answers_bytes, is_signed, when
from tests.support.components import submit
from tests.support.email_jobs import AGENT, assert_nothing_is_held, classifying_agent, email_job, log_emails
from tests.support.jobs import answered, define, running_job_process
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.events import EmailStatus
    from service.commands import AnyCommand
    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(("answer", "used"), [({"tokens_used": 730}, 730), ({"found": 2}, 500)])
async def test_poll_reserves_1000_tokens_and_settles_those_reported_or_500(
    agents: Agents, job_process: JobProcess, answer: object, used: int
) -> None:
    agents.on(POLL_ENDPOINT, answers(answer))
    await define(job_process, "email_poll", task="email_poll", agent=AGENT, tokens=1_000)
    await job_process.carry_out("email_poll")
    assert [item.tokens for item in job_process.find_events(TokensReserved)] == [1_000]
    assert [item.tokens_used for item in job_process.find_events(TokensSettled)] == [used]
    (report,) = job_process.find_events(MessageSent)
    assert (report.agent, report.message) == (AGENT, "email_poll succeeded")
    assert_nothing_is_held(job_process)


@pytest.mark.parametrize(
    ("task", "endpoint", "status", "max_emails", "reserved", "unreported"),
    [
        ("email_classify", CLASSIFY_ENDPOINT, "classified", 10, 500, 300),
        ("email_respond", RESPOND_ENDPOINT, "draft_created", 5, 800, 600),
    ],
)
async def test_run_claims_and_processes_at_most_max_emails_oldest_first(
    agents: Agents,
    job_process: JobProcess,
    task: str,
    endpoint: str,
    status: EmailStatus,
    max_emails: int,
    reserved: int,
    unreported: int,
) -> None:
    reporting = classifying_agent(job_process, status, {"tokens_used": 111})
    agents.on(endpoint, reporting, classifying_agent(job_process, status))
    waiting = await log_emails(job_process, max_emails + 2, classified=task == "email_respond")
    await email_job(job_process, task)
    finished = await job_process.carry_out(task)
    assert finished.outcome == "succeeded"
    assert [call.payload["email_id"] for call in agents.called(endpoint)] == waiting[:max_emails]
    assert [item.tokens for item in job_process.find_events(TokensReserved)] == [reserved] * max_emails
    used = [item.tokens_used for item in job_process.find_events(TokensSettled)]
    assert used == [111, *[unreported] * (max_emails - 1)]
    claims = job_process.find_events(OperationStarted)
    assert [claim.resources for claim in claims] == [{"emailId": id_} for id_ in waiting[:max_emails]]
    assert {claim.agent for claim in claims} == {AGENT}
    assert {item.outcome for item in job_process.find_events(OperationFinished)} == {"succeeded"}
    positions = [item.position for item in job_process.log if item.type == "operation_started"]
    assert [call.payload["fencing_token"] for call in agents.calls] == positions
    (report,) = job_process.find_events(MessageSent)
    assert report.message == f"{task}: {max_emails} of {max_emails + 2} e-mails done"
    assert_nothing_is_held(job_process)


async def test_webhook_id_is_unique_per_email_and_the_same_at_each_attempt(
    agents: Agents, database: str
) -> None:
    async with running_job_process(database, agents.url, email_agent=SECRET) as job_process:
        agents.on(CLASSIFY_ENDPOINT, answers({}, 500))
        waiting = await log_emails(job_process, 3)
        await define(job_process, "email_classify", task="email_classify", agent=AGENT, retries=1)
        finished = await job_process.carry_out("email_classify")
    assert finished.attempts == 2
    ids = [call.headers["webhook-id"] for call in agents.calls]
    assert ids == [f"{finished.run_id}_{email}" for email in waiting] * 2
    assert all(is_signed(call, SECRET) for call in agents.calls)
    for call in agents.calls:
        verify(SECRET, call.headers, call.body, time())


async def test_claim_is_renewed_during_a_slow_call(agents: Agents, job_process: JobProcess) -> None:
    await submit(
        job_process.writer, do.SetPolicy(conflict_window_seconds=0.6, operation_timeout_seconds=1.2)
    )
    agents.on(CLASSIFY_ENDPOINT, after(1.5))
    (email,) = await log_emails(job_process, 1)
    await email_job(job_process, "email_classify")
    run = await job_process.run_now("email_classify")
    await eventually(lambda: len(job_process.find_events(OperationRenewed)) >= 5)
    rival = await submit(
        job_process.writer, do.StartOperation(agent="rival", action="x", resources={"emailId": email})
    )
    assert rival.refusal is not None
    assert rival.refusal.code == "conflict"
    assert (await job_process.wait_for_run(run)).outcome == "succeeded"
    assert_nothing_is_held(job_process)


async def test_claim_is_not_renewed_without_pause_however_short_the_window(
    agents: Agents, job_process: JobProcess
) -> None:
    await submit(job_process.writer, do.SetPolicy(conflict_window_seconds=1e-6))
    agents.on(CLASSIFY_ENDPOINT, after(0.5))
    await log_emails(job_process, 1)
    await email_job(job_process, "email_classify")
    assert (await job_process.carry_out("email_classify")).outcome == "succeeded"
    renewed = [item.recorded_at for item in job_process.log if item.type == OperationRenewed.type]
    assert len(renewed) > 1
    assert all((later - earlier).total_seconds() > 0.02 for earlier, later in pairwise(renewed))


async def test_call_is_aborted_when_the_claim_is_lost(agents: Agents, job_process: JobProcess) -> None:
    """As when a process was disconnected for longer than its claim blocks others."""

    async def fail_until_reconnected() -> None:
        if not reconnected.is_set():
            raise CommandFailed

    reconnected, never = asyncio.Event(), asyncio.Event()
    job_process.call_before(do.RenewOperation, fail_until_reconnected)
    await submit(job_process.writer, do.SetPolicy(conflict_window_seconds=0.3))
    agents.on(CLASSIFY_ENDPOINT, when(never))
    (email,) = await log_emails(job_process, 1)
    await email_job(job_process, "email_classify")
    run = await job_process.run_now("email_classify")
    await eventually(lambda: agents.calls)

    async def is_claimed_by_rival() -> bool:
        claim = do.StartOperation(agent="rival", action="quote", resources={"emailId": email})
        return (await submit(job_process.writer, claim)).refusal is None

    await eventually(is_claimed_by_rival)
    reconnected.set()
    await job_process.wait_for_run(run)
    (report,) = job_process.find_events(MessageSent)
    assert report.data
    [(left, reason)] = report.data["left"].items()
    assert left == email
    assert reason.startswith(f"'rival' has claimed emailId {email} for 'quote'; operation ")
    assert "is lost to that claim" in reason
    assert agents.in_flight[CLASSIFY_ENDPOINT] == 0
    (cancelled,) = job_process.find_events(OperationFinished)
    assert (cancelled.agent, cancelled.outcome) == (AGENT, "cancelled")
    assert len(job_process.find_events(TokensReleased)) == 1


@pytest.mark.parametrize(
    ("task", "second"),
    [("email_classify", do.StartOperation), ("email_respond", do.ReserveTokens)],
)
async def test_claim_or_reservation_is_released_when_the_other_one_fails(
    agents: Agents, job_process: JobProcess, task: str, second: type[do.Command]
) -> None:
    async def fail() -> None:
        raise CommandFailed

    job_process.call_before(second, fail)
    await log_emails(job_process, 1, classified=task == "email_respond")
    await email_job(job_process, task)
    finished = await job_process.carry_out(task)
    assert finished.reason == "the orchestrator was not available: CommandFailed"
    assert not agents.calls
    assert_nothing_is_held(job_process)


async def test_run_fails_when_all_emails_fail(agents: Agents, job_process: JobProcess) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({"error": "no model"}, 500))
    await log_emails(job_process, 2)
    await email_job(job_process, "email_classify")
    finished = await job_process.carry_out("email_classify")
    assert (finished.outcome, finished.reason) == ("failed", answered(500, '{"error":"no model"}'))
    assert len(job_process.find_events(TokensReleased)) == 2
    assert_nothing_is_held(job_process)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b"\x1f\x8b\x08\x00\x00a", "\x1f\ufffd\x08a"),
        (b"[" * 300 + b"]" * 300, "(nested too deep to be shown)"),
    ],
    ids=["binary", "nested too deep"],
)
async def test_unstorable_answer_is_reported_in_storable_form(
    agents: Agents, job_process: JobProcess, answer: bytes, shown: str
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers_bytes(answer, 502), answers({}))
    email, other = await log_emails(job_process, 2)
    await email_job(job_process, "email_classify")
    assert (await job_process.carry_out("email_classify")).outcome == "succeeded"
    (report,) = job_process.find_events(MessageSent)
    assert report.data
    assert report.data["left"] == {
        email: answered(502, shown),
        other: "the agent answered, but left it unclassified",
    }


@pytest.mark.parametrize(
    "end", [do.StopOrchestrator(), do.RemoveJob(name="email_classify")], ids=["shut down", "removed"]
)
async def test_run_holds_nothing_after_a_shutdown_or_the_removal_of_its_job(
    agents: Agents, job_process: JobProcess, end: AnyCommand
) -> None:
    may_answer = asyncio.Event()
    agents.on(CLASSIFY_ENDPOINT, when(may_answer))
    await log_emails(job_process, 3)
    await email_job(job_process, "email_classify")
    run = await job_process.run_now("email_classify")
    await eventually(lambda: agents.calls)
    await submit(job_process.writer, end)
    may_answer.set()
    assert (await job_process.wait_for_run(run)).outcome == "succeeded"
    # After the shutdown no further agent is called.
    assert len(agents.calls) == (1 if isinstance(end, do.StopOrchestrator) else 3)
    assert_nothing_is_held(job_process)


async def test_run_cancelled_by_the_next_tick_holds_nothing(
    agents: Agents, job_process: JobProcess
) -> None:
    never = asyncio.Event()
    agents.on(CLASSIFY_ENDPOINT, when(never), after(0.1))
    await log_emails(job_process, 1)
    await define(
        job_process,
        "email_classify",
        task="email_classify",
        agent=AGENT,
        every="1s",
        overlap="cancel_other",
        timeout_seconds=30,
    )
    await eventually(
        lambda: any(run.outcome == "succeeded" for run in job_process.find_events(RunFinished))
    )
    assert job_process.find_events(OperationFinished)[0].outcome == "cancelled"
    await submit(job_process.writer, do.RemoveJob(name="email_classify"))
    await eventually(lambda: not job_process.scheduler._tasks)
    assert_nothing_is_held(job_process)


async def test_run_cancelled_at_any_moment_holds_nothing(agents: Agents, job_process: JobProcess) -> None:
    """Whichever command is in flight when the run is cancelled, what it acquired is known and released."""
    agents.on(CLASSIFY_ENDPOINT, after(0.002))
    await log_emails(job_process, 10)
    await email_job(job_process, "email_classify")
    for moment in range(25):
        run = await job_process.run_now("email_classify")
        task = job_process.scheduler._runs[run]
        goal = len(job_process.log) + moment
        await eventually(lambda: len(job_process.log) >= goal or not job_process.scheduler._tasks)  # noqa: B023
        task.cancel()
        task.cancel()
        await eventually(lambda: not job_process.scheduler._tasks)
        assert_nothing_is_held(job_process)
        end = do.EndAttempt(run_id=run, runner="one", attempt=1, succeeded=False, report="cut short")
        await submit(job_process.writer, end)
    assert job_process.find_events(OperationFinished)


async def test_run_stopped_with_the_service_holds_nothing(
    agents: Agents, job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.1)
    never = asyncio.Event()
    agents.on(RESPOND_ENDPOINT, when(never))
    await log_emails(job_process, 2, classified=True)
    await email_job(job_process, "email_respond")
    run = await job_process.run_now("email_respond")
    await eventually(lambda: agents.calls)
    await job_process.scheduler.stop()
    finished = await job_process.wait_for_run(run)
    assert (finished.outcome, finished.reason) == ("failed", "the service was stopped")
    assert_nothing_is_held(job_process)


async def test_tokens_spent_after_the_reservation_ended_are_recorded_as_usage(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on(CLASSIFY_ENDPOINT, after(0.5, answers({"tokens_used": 77})))
    await log_emails(job_process, 1)
    await email_job(job_process, "email_classify")
    run = await job_process.run_now("email_classify")
    (reserved,) = await eventually(lambda: job_process.find_events(TokensReserved))
    await submit(job_process.writer, do.ReleaseReservation(reservation_id=reserved.reservation_id))
    await job_process.wait_for_run(run)
    (used,) = job_process.find_events(TokensUsed)
    assert (used.agent, used.tokens) == (AGENT, 77)


@pytest.mark.parametrize(
    ("count", "status", "answered"), [(0, 200, False), (1, 200, True), (1, 500, False)]
)
async def test_run_counts_as_activity_of_its_agent_only_when_an_email_succeeded(
    agents: Agents, job_process: JobProcess, count: int, status: int, *, answered: bool
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({}, status))
    await log_emails(job_process, count)
    await email_job(job_process, "email_classify")
    before = job_process.writer.squad.rows(AGENTS).get(AGENT)
    finished = await job_process.carry_out("email_classify")
    assert finished.answered is answered
    afterwards = job_process.writer.squad.rows(AGENTS).get(AGENT)
    assert before
    assert afterwards
    assert (afterwards.last_active > before.last_active) is answered

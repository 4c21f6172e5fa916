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
from tests.support.email_jobs import AGENT, assert_nothing_is_held, email_job, emails
from tests.support.jobs import define, running_member
from tests.support.parts import submit
from tests.support.wait import eventually

if TYPE_CHECKING:
    from service.commands import AnyCommand
    from tests.support.agents import Agents
    from tests.support.jobs import Member

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(("answer", "used"), [({"tokens_used": 730}, 730), ({"found": 2}, 500)])
async def test_poll_reserves_1000_tokens_and_settles_those_reported_or_500(
    agents: Agents, member: Member, answer: object, used: int
) -> None:
    agents.on(POLL_ENDPOINT, answers(answer))
    await define(member, "email_poll", task="email_poll", agent=AGENT, tokens=1_000)
    await member.carry_out("email_poll")
    assert [item.tokens for item in member.told(TokensReserved)] == [1_000]
    assert [item.tokens_used for item in member.told(TokensSettled)] == [used]
    (report,) = member.told(MessageSent)
    assert (report.agent, report.message) == (AGENT, "email_poll succeeded")
    assert_nothing_is_held(member)


@pytest.mark.parametrize(
    ("task", "endpoint", "max_emails", "reserved", "unreported"),
    [
        ("email_classify", CLASSIFY_ENDPOINT, 10, 500, 300),
        ("email_respond", RESPOND_ENDPOINT, 5, 800, 600),
    ],
)
async def test_run_claims_and_processes_at_most_max_emails_oldest_first(
    agents: Agents,
    member: Member,
    task: str,
    endpoint: str,
    max_emails: int,
    reserved: int,
    unreported: int,
) -> None:
    agents.on(endpoint, answers({"tokens_used": 111}), answers({}))
    waiting = await emails(member, max_emails + 2, classified=task == "email_respond")
    await email_job(member, task)
    finished = await member.carry_out(task)
    assert finished.outcome == "succeeded"
    assert [call.payload["email_id"] for call in agents.called(endpoint)] == waiting[:max_emails]
    assert [item.tokens for item in member.told(TokensReserved)] == [reserved] * max_emails
    used = [item.tokens_used for item in member.told(TokensSettled)]
    assert used == [111, *[unreported] * (max_emails - 1)]
    claims = member.told(OperationStarted)
    assert [claim.resources for claim in claims] == [{"emailId": id_} for id_ in waiting[:max_emails]]
    assert {claim.agent for claim in claims} == {AGENT}
    assert {item.outcome for item in member.told(OperationFinished)} == {"succeeded"}
    positions = [item.position for item in member.log if item.type == "operation_started"]
    assert [call.payload["fencing_token"] for call in agents.calls] == positions
    (report,) = member.told(MessageSent)
    assert report.message == f"{task}: {max_emails} of {max_emails + 2} e-mails done"
    assert_nothing_is_held(member)


async def test_webhook_id_is_unique_per_email_and_the_same_at_each_attempt(
    agents: Agents, database: str
) -> None:
    async with running_member(database, agents.url, email_agent=SECRET) as member:
        agents.on(CLASSIFY_ENDPOINT, answers({}, 500))
        waiting = await emails(member, 3)
        await define(member, "email_classify", task="email_classify", agent=AGENT, retries=1)
        finished = await member.carry_out("email_classify")
    assert finished.attempts == 2
    ids = [call.headers["webhook-id"] for call in agents.calls]
    assert ids == [f"{finished.run_id}_{email}" for email in waiting] * 2
    assert all(is_signed(call, SECRET) for call in agents.calls)
    for call in agents.calls:
        verify(SECRET, call.headers, call.body, time())


async def test_claim_is_renewed_during_a_slow_call(agents: Agents, member: Member) -> None:
    await submit(member.writer, do.SetPolicy(conflict_window_seconds=0.6, operation_timeout_seconds=1.2))
    agents.on(CLASSIFY_ENDPOINT, after(1.5))
    (email,) = await emails(member, 1)
    await email_job(member, "email_classify")
    run = await member.run_now("email_classify")
    await eventually(lambda: len(member.told(OperationRenewed)) >= 5)
    rival = await submit(
        member.writer, do.StartOperation(agent="rival", action="x", resources={"emailId": email})
    )
    assert rival.refusal is not None
    assert rival.refusal.code == "conflict"
    assert (await member.finished(run)).outcome == "succeeded"
    assert_nothing_is_held(member)


async def test_claim_is_not_renewed_without_pause_however_short_the_window(
    agents: Agents, member: Member
) -> None:
    await submit(member.writer, do.SetPolicy(conflict_window_seconds=1e-6))
    agents.on(CLASSIFY_ENDPOINT, after(0.5))
    await emails(member, 1)
    await email_job(member, "email_classify")
    assert (await member.carry_out("email_classify")).outcome == "succeeded"
    renewed = [item.recorded_at for item in member.log if item.type == OperationRenewed.type]
    assert len(renewed) > 1
    assert all((later - earlier).total_seconds() > 0.02 for earlier, later in pairwise(renewed))


async def test_call_is_aborted_when_the_claim_is_lost(agents: Agents, member: Member) -> None:
    """As when a process was disconnected for longer than its claim blocks others."""

    async def fail_until_reconnected() -> None:
        if not reconnected.is_set():
            raise CommandFailed

    reconnected, never = asyncio.Event(), asyncio.Event()
    member.before(do.RenewOperation, fail_until_reconnected)
    await submit(member.writer, do.SetPolicy(conflict_window_seconds=0.3))
    agents.on(CLASSIFY_ENDPOINT, when(never))
    (email,) = await emails(member, 1)
    await email_job(member, "email_classify")
    run = await member.run_now("email_classify")
    await eventually(lambda: agents.calls)

    async def is_claimed_by_rival() -> bool:
        claim = do.StartOperation(agent="rival", action="quote", resources={"emailId": email})
        return (await submit(member.writer, claim)).refusal is None

    await eventually(is_claimed_by_rival)
    reconnected.set()
    await member.finished(run)
    (report,) = member.told(MessageSent)
    assert report.data
    assert report.data["left"] == {email: f"'rival' has claimed emailId {email} for 'quote'"}
    assert agents.busy[CLASSIFY_ENDPOINT] == 0
    (cancelled,) = member.told(OperationFinished)
    assert (cancelled.agent, cancelled.outcome) == (AGENT, "cancelled")
    assert len(member.told(TokensReleased)) == 1


@pytest.mark.parametrize(
    ("task", "second"),
    [("email_classify", do.StartOperation), ("email_respond", do.ReserveTokens)],
)
async def test_claim_or_reservation_is_released_when_the_other_one_fails(
    agents: Agents, member: Member, task: str, second: type[do.Command]
) -> None:
    async def fail() -> None:
        raise CommandFailed

    member.before(second, fail)
    await emails(member, 1, classified=task == "email_respond")
    await email_job(member, task)
    finished = await member.carry_out(task)
    assert finished.reason == "the orchestrator was not available: CommandFailed"
    assert not agents.calls
    assert_nothing_is_held(member)


async def test_run_fails_when_all_emails_fail(agents: Agents, member: Member) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({"error": "no model"}, 500))
    await emails(member, 2)
    await email_job(member, "email_classify")
    finished = await member.carry_out("email_classify")
    assert (finished.outcome, finished.reason) == ("failed", 'the agent answered 500: {"error":"no model"}')
    assert len(member.told(TokensReleased)) == 2
    assert_nothing_is_held(member)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b"\x1f\x8b\x08\x00\x00a", "\x1f\ufffd\x08a"),
        (b"[" * 300 + b"]" * 300, "(nested too deep to be shown)"),
    ],
    ids=["binary", "nested too deep"],
)
async def test_unstorable_answer_is_reported_in_storable_form(
    agents: Agents, member: Member, answer: bytes, shown: str
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers_bytes(answer, 502), answers({}))
    email, _ = await emails(member, 2)
    await email_job(member, "email_classify")
    assert (await member.carry_out("email_classify")).outcome == "succeeded"
    (report,) = member.told(MessageSent)
    assert report.data
    assert report.data["left"] == {email: f"the agent answered 502: {shown}"}


@pytest.mark.parametrize(
    "end", [do.StopOrchestrator(), do.RemoveJob(name="email_classify")], ids=["shut down", "removed"]
)
async def test_run_holds_nothing_after_a_shutdown_or_the_removal_of_its_job(
    agents: Agents, member: Member, end: AnyCommand
) -> None:
    may_answer = asyncio.Event()
    agents.on(CLASSIFY_ENDPOINT, when(may_answer))
    await emails(member, 3)
    await email_job(member, "email_classify")
    run = await member.run_now("email_classify")
    await eventually(lambda: agents.calls)
    await submit(member.writer, end)
    may_answer.set()
    assert (await member.finished(run)).outcome == "succeeded"
    # After the shutdown no further agent is called.
    assert len(agents.calls) == (1 if isinstance(end, do.StopOrchestrator) else 3)
    assert_nothing_is_held(member)


async def test_run_cancelled_by_the_next_tick_holds_nothing(agents: Agents, member: Member) -> None:
    never = asyncio.Event()
    agents.on(CLASSIFY_ENDPOINT, when(never), after(0.1))
    await emails(member, 1)
    await define(
        member,
        "email_classify",
        task="email_classify",
        agent=AGENT,
        every="1s",
        overlap="cancel_other",
        timeout_seconds=30,
    )
    await eventually(lambda: any(run.outcome == "succeeded" for run in member.told(RunFinished)))
    assert member.told(OperationFinished)[0].outcome == "cancelled"
    await submit(member.writer, do.RemoveJob(name="email_classify"))
    await eventually(lambda: not member.scheduler._tasks)
    assert_nothing_is_held(member)


async def test_run_cancelled_at_any_moment_holds_nothing(agents: Agents, member: Member) -> None:
    """Whichever command is in flight when the run is cancelled, what it acquired is known and released."""
    agents.on(CLASSIFY_ENDPOINT, after(0.002))
    await emails(member, 10)
    await email_job(member, "email_classify")
    for moment in range(25):
        run = await member.run_now("email_classify")
        task = member.scheduler._runs[run]
        goal = len(member.log) + moment
        await eventually(lambda: len(member.log) >= goal or not member.scheduler._tasks)  # noqa: B023
        task.cancel()
        task.cancel()
        await eventually(lambda: not member.scheduler._tasks)
        assert_nothing_is_held(member)
        end = do.EndAttempt(run_id=run, runner="one", attempt=1, succeeded=False, report="cut short")
        await submit(member.writer, end)
    assert member.told(OperationFinished)


async def test_run_stopped_with_the_service_holds_nothing(
    agents: Agents, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduling.scheduler.STOP_SECONDS", 0.1)
    never = asyncio.Event()
    agents.on(RESPOND_ENDPOINT, when(never))
    await emails(member, 2, classified=True)
    await email_job(member, "email_respond")
    run = await member.run_now("email_respond")
    await eventually(lambda: agents.calls)
    await member.scheduler.stop()
    finished = await member.finished(run)
    assert (finished.outcome, finished.reason) == ("failed", "the service was stopped")
    assert_nothing_is_held(member)


async def test_tokens_spent_after_the_reservation_ended_are_recorded_as_usage(
    agents: Agents, member: Member
) -> None:
    agents.on(CLASSIFY_ENDPOINT, after(0.5, answers({"tokens_used": 77})))
    await emails(member, 1)
    await email_job(member, "email_classify")
    run = await member.run_now("email_classify")
    (reserved,) = await eventually(lambda: member.told(TokensReserved))
    await submit(member.writer, do.ReleaseReservation(reservation_id=reserved.reservation_id))
    await member.finished(run)
    (used,) = member.told(TokensUsed)
    assert (used.agent, used.tokens) == (AGENT, 77)


@pytest.mark.parametrize(
    ("count", "status", "answered"), [(0, 200, False), (1, 200, True), (1, 500, False)]
)
async def test_run_counts_as_activity_of_its_agent_only_when_an_email_succeeded(
    agents: Agents, member: Member, count: int, status: int, *, answered: bool
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({}, status))
    await emails(member, count)
    await email_job(member, "email_classify")
    before = member.writer.squad.rows(AGENTS).get(AGENT)
    finished = await member.carry_out("email_classify")
    assert finished.answered is answered
    afterwards = member.writer.squad.rows(AGENTS).get(AGENT)
    assert before
    assert afterwards
    assert (afterwards.last_active > before.last_active) is answered

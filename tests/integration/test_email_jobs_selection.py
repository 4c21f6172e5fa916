"""Which e-mails a job processes, which it skips or leaves for later, and which move behind the others."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Literal

import pytest

from eventstore.events import (
    ConflictDetected,
    MessageSent,
    OperationFinished,
    TokensDenied,
    TokensSettled,
)
from service import commands as do
from service.scheduling.email_work import CLASSIFY_ENDPOINT, RESPOND_ENDPOINT, _Skipped
from tests.support.agents import answers, drips
from tests.support.components import submit
from tests.support.email_jobs import AGENT, assert_nothing_is_held, classifying_agent, email_job, log_emails
from tests.support.jobs import running_job_process

if TYPE_CHECKING:
    from aiohttp import web

    from eventstore.events import EmailStatus
    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess


async def test_only_waiting_emails_are_processed(agents: Agents, job_process: JobProcess) -> None:
    (first, second) = await log_emails(job_process, 2, classified=True)
    await submit(job_process.writer, do.UpdateEmail(email_id=first, status="draft_created"))
    await email_job(job_process, "email_classify")
    await email_job(job_process, "email_respond")
    await job_process.carry_out("email_classify")
    assert not agents.calls
    await job_process.carry_out("email_respond")
    assert [call.payload["email_id"] for call in agents.calls] == [second]


async def test_emails_of_a_forgotten_sender_are_skipped(agents: Agents, database: str) -> None:
    async with running_job_process(database, agents.url, encrypt=True) as job_process:
        await log_emails(job_process, 1)
        await submit(job_process.writer, do.ForgetSubject(subject="ada@example.org"))
        logged = do.LogEmail(gmail_message_id="another", from_email="bob@example.org")
        left = str((await submit(job_process.writer, logged)).reply["id"])
        await email_job(job_process, "email_classify")
        await job_process.carry_out("email_classify")
        assert [call.payload["email_id"] for call in agents.called(CLASSIFY_ENDPOINT)] == [left]


@pytest.mark.parametrize(("task", "budget"), [("email_classify", 1_000), ("email_respond", 1_700)])
async def test_run_stops_when_the_budget_refuses(
    agents: Agents, job_process: JobProcess, task: str, budget: int
) -> None:
    done: EmailStatus = "draft_created" if task == "email_respond" else "classified"
    agents.on(CLASSIFY_ENDPOINT, classifying_agent(job_process, done))
    agents.on(RESPOND_ENDPOINT, classifying_agent(job_process, done))
    await log_emails(job_process, 4, classified=task == "email_respond")
    # Classifying uses 300 of each 500 reserved, responding 600 of each 800: there is enough for two.
    await submit(job_process.writer, do.SetBudget(daily_tokens=budget))
    await email_job(job_process, task)
    finished = await job_process.carry_out(task)
    assert finished.outcome == "succeeded"
    assert len(agents.calls) == 2
    assert len(job_process.find_events(TokensDenied)) == 1
    (report,) = job_process.find_events(MessageSent)
    assert report.message == f"{task}: 2 of 4 e-mails done, 1 left for later; the budget allows no more"
    assert_nothing_is_held(job_process)


@pytest.mark.parametrize("task", ["email_classify", "email_respond"])
async def test_email_claimed_by_another_agent_is_left_for_later_and_reported(
    agents: Agents, job_process: JobProcess, task: str
) -> None:
    claimed, free = await log_emails(job_process, 2, classified=task == "email_respond")
    claim = do.StartOperation(agent="quote_agent", action="quote", resources={"emailId": claimed})
    held = await submit(job_process.writer, claim)
    await email_job(job_process, task)
    finished = await job_process.carry_out(task)
    assert finished.outcome == "succeeded"
    assert [call.payload["email_id"] for call in agents.calls] == [free]
    (conflict,) = job_process.find_events(ConflictDetected)
    assert (conflict.agent, conflict.operation_id) == (AGENT, held.reply["id"])
    left, _ = job_process.find_events(MessageSent)
    assert left.agent == AGENT
    assert left.message == (
        f"{task.removeprefix('email_')} of e-mail {claimed} is left for later:"
        f" 'quote_agent' has claimed emailId {claimed} for 'quote'"
    )
    await submit(job_process.writer, do.FinishOperation(operation_id=held.reply["id"], outcome="succeeded"))
    assert_nothing_is_held(job_process)


async def test_failed_email_moves_behind_the_others_and_its_tokens_count(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({"tokens_used": 9}, 500), classifying_agent(job_process))
    first, *others = await log_emails(job_process, 12)
    await email_job(job_process, "email_classify")
    await job_process.carry_out("email_classify")
    assert [item.outcome for item in job_process.find_events(OperationFinished)] == [
        "failed",
        *["succeeded"] * 9,
    ]
    assert job_process.find_events(TokensSettled)[0].tokens_used == 9
    await job_process.carry_out("email_classify")
    assert [call.payload["email_id"] for call in agents.calls[10:]] == [*others[9:], first]
    assert not job_process.scheduler._failure_counts
    assert_nothing_is_held(job_process)


@pytest.mark.parametrize("held", [False, True], ids=["left unchanged", "claimed by another agent"])
async def test_emails_still_waiting_after_a_run_move_behind_the_others(
    agents: Agents, job_process: JobProcess, *, held: bool
) -> None:
    waiting = await log_emails(job_process, 7, classified=True)
    for email in waiting[:5] if held else ():
        claim = do.StartOperation(agent="rival", action="x", resources={"emailId": email})
        await submit(job_process.writer, claim)
    await email_job(job_process, "email_respond")
    for _ in range(2):
        assert (await job_process.carry_out("email_respond")).outcome == "succeeded"
    called = [call.payload["email_id"] for call in agents.calls]
    assert called == (waiting[5:] if held else [*waiting, *waiting[:3]])


@pytest.mark.parametrize(
    ("task", "state"), [("email_classify", "unclassified"), ("email_respond", "classified")]
)
async def test_email_that_its_agent_left_unchanged_is_not_reported_as_done(
    agents: Agents, job_process: JobProcess, task: str, state: str
) -> None:
    (email,) = await log_emails(job_process, 1, classified=task == "email_respond")
    await email_job(job_process, task)
    assert (await job_process.carry_out(task)).outcome == "succeeded"
    assert len(agents.calls) == 1
    (report,) = job_process.find_events(MessageSent)
    assert report.message == f"{task}: 0 of 1 e-mails done, 1 still {state}"
    assert report.data
    assert report.data["done"] == []
    assert report.data["left"] == {email: f"the agent answered, but left it {state}"}


async def test_email_that_the_budget_refused_does_not_move_behind_the_others(
    agents: Agents, job_process: JobProcess
) -> None:
    await log_emails(job_process, 1)
    await submit(job_process.writer, do.SetBudget(daily_tokens=100))
    await email_job(job_process, "email_classify")
    await job_process.carry_out("email_classify")
    assert not agents.calls
    assert not job_process.scheduler._failure_counts


async def test_failure_count_is_dropped_when_the_email_is_archived(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({}, 500))
    (email,) = await log_emails(job_process, 1)
    await email_job(job_process, "email_classify")
    await job_process.carry_out("email_classify")
    assert dict(job_process.scheduler._failure_counts) == {email: 1}
    await submit(job_process.writer, do.UpdateEmail(email_id=email, status="archived"))
    await job_process.carry_out("email_classify")
    assert not job_process.scheduler._failure_counts


async def test_skipped_emails_leave_nothing_in_memory(agents: Agents, job_process: JobProcess) -> None:
    """An exception and what references it form a cycle, which would keep the agent's answer."""
    agents.on(CLASSIFY_ENDPOINT, answers({}, 500))
    await log_emails(job_process, 3)
    await email_job(job_process, "email_classify")
    gc.collect()
    gc.disable()
    try:
        await job_process.carry_out("email_classify")
        assert len(agents.calls) == 3
        assert not [left for left in gc.get_objects() if isinstance(left, _Skipped)]
    finally:
        gc.enable()


@pytest.mark.parametrize("status", ["classified", "archived"])
async def test_email_finished_by_others_since_its_selection_is_skipped(
    agents: Agents, job_process: JobProcess, status: Literal["classified", "archived"]
) -> None:
    first, second, third = await log_emails(job_process, 3)

    async def classify_two(request: web.Request) -> web.StreamResponse:
        change = do.UpdateEmail(email_id=second, status=status, category="quote")
        await submit(job_process.writer, change)
        return await classifying_agent(job_process)(request)

    agents.on(CLASSIFY_ENDPOINT, classify_two, classifying_agent(job_process))
    await email_job(job_process, "email_classify")
    assert (await job_process.carry_out("email_classify")).outcome == "succeeded"
    assert [call.payload["email_id"] for call in agents.calls] == [first, third]
    (report,) = job_process.find_events(MessageSent)
    assert report.message == "email_classify: 2 of 3 e-mails done, 1 no longer waiting"
    assert report.data
    assert report.data["left"] == {second: "it was finished or erased meanwhile"}
    assert [item.outcome for item in job_process.find_events(OperationFinished)] == [
        "succeeded",
        "cancelled",
        "succeeded",
    ]
    assert_nothing_is_held(job_process)


async def test_hanging_call_leaves_time_for_the_other_emails(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on(CLASSIFY_ENDPOINT, drips(), classifying_agent(job_process))
    await log_emails(job_process, 3)
    await email_job(job_process, "email_classify", timeout_seconds=1.0)
    finished = await job_process.carry_out("email_classify")
    assert finished.outcome == "succeeded"
    (report,) = job_process.find_events(MessageSent)
    assert report.message == "email_classify: 2 of 3 e-mails done, 1 left for later"
    assert [item.outcome for item in job_process.find_events(OperationFinished)] == [
        "cancelled",
        *["succeeded"] * 2,
    ]
    assert_nothing_is_held(job_process)

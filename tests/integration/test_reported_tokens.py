"""What an agent that is called reports of its tokens, and what becomes of those that it takes by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from eventstore.events import MessageSent
from service import commands as do
from service.scheduling.email_work import CLASSIFY_ENDPOINT
from tests.support.agents import answers
from tests.support.components import submit
from tests.support.email_jobs import AGENT, classifying_agent, email_job, log_emails
from tests.support.jobs import define

if TYPE_CHECKING:
    from aiohttp import web

    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess

NOTE = "; the agent's report of its tokens was not understood"


@pytest.mark.parametrize(
    ("status", "answer", "report"),
    [
        (200, {"tokens_used": "120"}, f"work succeeded{NOTE}"),
        (500, {"tokens_used": "1"}, f'work failed: the agent answered 500: {{"tokens_used":"1"}}{NOTE}'),
        (200, {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, "work succeeded"),
        (200, {}, "work succeeded"),
    ],
    ids=["misreported", "misreported with a failure", "named as by OpenAI", "not reported"],
)
async def test_run_says_when_its_agents_tokens_were_not_understood(
    agents: Agents, job_process: JobProcess, status: int, answer: object, report: str
) -> None:
    agents.on("/work", answers(answer, status))
    await define(job_process, "work", endpoint="/work", agent=AGENT)
    await job_process.carry_out("work")
    assert [sent.message for sent in job_process.find_events(MessageSent)] == [report]


async def test_run_with_several_calls_says_once_that_tokens_were_not_understood(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on(CLASSIFY_ENDPOINT, classifying_agent(job_process, answer={"usage": {"total_tokens": 5}}))
    await log_emails(job_process, 2)
    await email_job(job_process, "email_classify")
    await job_process.carry_out("email_classify")
    (report,) = job_process.find_events(MessageSent)
    assert report.message == f"email_classify: 2 of 2 e-mails done{NOTE}"


@pytest.mark.parametrize(("answer", "used"), [({"tokens_used": 0}, 150), ({}, 450)], ids=str)
async def test_agent_that_settles_tokens_itself_reports_none_lest_they_count_twice(
    agents: Agents, job_process: JobProcess, answer: object, used: int
) -> None:
    async def reserve_and_settle(request: web.Request) -> web.StreamResponse:
        reserved = await submit(job_process.writer, do.ReserveTokens(agent=AGENT, tokens=200))
        settle = do.SettleReservation(reservation_id=reserved.reply["id"], tokens_used=150)
        assert (await submit(job_process.writer, settle)).refusal is None
        return await answers(answer)(request)

    agents.on("/work", reserve_and_settle)
    await define(job_process, "work", endpoint="/work", agent=AGENT, tokens=300)
    assert (await job_process.carry_out("work")).outcome == "succeeded"
    day = job_process.writer.squad.day
    assert day
    assert (day.used, day.reserved) == (used, 0)


async def test_claim_of_an_agent_on_what_its_call_holds_is_refused_with_the_calls_claim(
    agents: Agents, job_process: JobProcess
) -> None:
    refused = []

    async def claim(request: web.Request) -> web.StreamResponse:
        start = do.StartOperation(agent=AGENT, action="send", resources={"mailbox": "info"})
        refusal = (await submit(job_process.writer, start)).refusal
        assert refusal
        refused.append((refusal.code, refusal.detail))
        return await answers({})(request)

    agents.on("/work", claim)
    await define(job_process, "work", endpoint="/work", agent=AGENT, resources={"mailbox": "info"})
    await job_process.carry_out("work")
    assert refused == [("conflict", f"'{AGENT}' has claimed mailbox info for 'work'")]

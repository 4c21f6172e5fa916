"""How a run's report and the budget treat the tokens that an agent reports, or fails to report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from eventstore.events import MessageSent
from service.scheduling.email_work import CLASSIFY_ENDPOINT
from tests.support.agents import answers
from tests.support.email_jobs import AGENT, classifying_agent, email_job, log_emails
from tests.support.jobs import define

if TYPE_CHECKING:
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

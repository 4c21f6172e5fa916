"""An agent's error may be about a person: a squad that encrypts payloads does not keep its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from eventstore.events import JobPaused, RunAttemptFailed, RunSkipped
from service.scheduling import scheduler
from service.scheduling.email_work import CLASSIFY_ENDPOINT
from tests.support.agents import answers, answers_bytes, answers_raw
from tests.support.email_jobs import email_job, log_emails
from tests.support.erasure import find_remains
from tests.support.jobs import NOT_KEPT, define, running_job_process
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.agents import Agents, Behaviour
    from tests.support.jobs import JobProcess

ADDRESS = "carl@customer.example"
TEXT = f"no answer for {ADDRESS}"


@pytest.fixture
async def job_process(database: str, agents: Agents) -> AsyncIterator[JobProcess]:
    """A process that encrypts payloads."""
    async with running_job_process(database, agents.url, encrypt=True) as running:
        yield running


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (answers({"error": TEXT}, 500), f"the agent answered 500{NOT_KEPT}"),
        (answers_bytes(TEXT.encode(), 503), f"the agent answered 503{NOT_KEPT}"),
        (
            answers_bytes(TEXT.encode(), 302, Location=f"/mail?to={ADDRESS}"),
            f"the agent answered 302{NOT_KEPT}",
        ),
        (answers_raw(f"{TEXT}\r\n\r\n".encode()), "the call to {url}/poll failed: "),
        (answers_raw(f"HTTP/1.1 200 OK\r\n{TEXT}\r\n\r\n".encode()), "the call to {url}/poll failed: "),
    ],
    ids=["JSON", "text", "redirect", "no HTTP", "no header"],
)
async def test_no_event_of_a_failed_run_quotes_the_answer(
    database: str, agents: Agents, job_process: JobProcess, behaviour: Behaviour, reason: str
) -> None:
    agents.on("/poll", behaviour)
    await define(job_process, "poll", every="200ms", retries=1, pause_on_failure=True)
    (skipped, *_) = await eventually(lambda: job_process.find_events(RunSkipped, reason="paused"))
    (attempt,) = job_process.find_events(RunAttemptFailed)
    (paused,) = job_process.find_events(JobPaused)
    for text in (attempt.reason, paused.note, skipped.detail):
        assert (text or "").startswith(reason.format(url=agents.url))
    assert await find_remains(database, [ADDRESS]) == []


async def test_no_event_quotes_the_answer_about_an_email(
    database: str, agents: Agents, job_process: JobProcess
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({"error": TEXT}, 500))
    await log_emails(job_process, 1)
    await email_job(job_process, "email_classify")
    finished = await job_process.carry_out("email_classify")
    assert (finished.outcome, finished.reason) == ("failed", f"the agent answered 500{NOT_KEPT}")
    assert await find_remains(database, [ADDRESS]) == []


async def test_no_event_quotes_an_internal_error(
    database: str, job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise ValueError(TEXT)

    monkeypatch.setattr(scheduler, "perform", broken)
    await define(job_process, "poll")
    finished = await job_process.carry_out("poll")
    assert finished.reason == "an internal error of the orchestrator: ValueError"
    assert await find_remains(database, [ADDRESS]) == []


async def test_without_encryption_the_answer_is_quoted(database: str, agents: Agents) -> None:
    agents.on("/poll", answers_bytes(TEXT.encode(), 500))
    async with running_job_process(database, agents.url, encrypt=False) as job_process:
        await define(job_process, "poll")
        assert (await job_process.carry_out("poll")).reason == f"the agent answered 500: {TEXT}"
        assert await find_remains(database, [ADDRESS]) == [ADDRESS]

"""Jobs that process e-mails, and e-mails for them to process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from projections.budgets import RESERVATIONS
from projections.operations import OPERATIONS
from service import commands as do
from tests.support.agents import answers
from tests.support.components import submit
from tests.support.jobs import define

if TYPE_CHECKING:
    from aiohttp import web

    from eventstore.events import EmailStatus
    from tests.support.agents import Behaviour
    from tests.support.jobs import JobProcess

AGENT = "email_agent"


async def log_emails(job_process: JobProcess, count: int, *, classified: bool = False) -> list[str]:
    """Log unprocessed e-mails; return their ids, oldest first."""
    found = []
    for number in range(count):
        logged = do.LogEmail(
            gmail_message_id=f"gmail-{number}",
            from_email="ada@example.org",
            category="quote" if classified else "unclassified",
            status="classified" if classified else "unread",
        )
        found.append(str((await submit(job_process.writer, logged)).reply["id"]))
    return found


async def email_job(job_process: JobProcess, task: str, timeout_seconds: float = 30.0) -> None:
    """Define a job for a built-in task that runs only when requested."""
    await define(job_process, task, task=task, agent=AGENT, timeout_seconds=timeout_seconds)


def assert_nothing_is_held(job_process: JobProcess) -> None:
    """Fail if any claim or reservation is left."""
    squad = job_process.writer.squad
    assert not list(squad.all(OPERATIONS))
    assert not list(squad.all(RESERVATIONS))
    assert squad.day is not None
    assert squad.day.reserved == 0


def classifying_agent(
    job_process: JobProcess, status: EmailStatus = "classified", answer: object = None
) -> Behaviour:
    """An agent that classifies its e-mails, or moves them on to another status, and answers."""

    async def behave(request: web.Request) -> web.StreamResponse:
        change = do.UpdateEmail(
            email_id=(await request.json())["email_id"], category="quote", status=status
        )
        await submit(job_process.writer, change)
        return await answers(answer or {})(request)

    return behave

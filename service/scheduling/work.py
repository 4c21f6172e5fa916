"""One attempt of a run: what it works with, and the report that it ends with.

An attempt acts only through the commands that agents send too, so its work is claimed, budgeted and logged
like theirs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from projections.agents import AGENTS
from service.commands import Usage
from service.requests import Request
from service.scheduling.calls import is_misreported
from service.values import storable

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from projections.jobs import JobRow
    from projections.runs import RunRow
    from service.commands import AnyCommand
    from service.memory.squad import Squad
    from service.requests import Outcome
    from service.scheduling.calls import AgentClient, Reply
    from service.writing.writer import Writer

T = TypeVar("T")

ACTOR = "system:scheduler"


class Report(NamedTuple):
    """How an attempt ended."""

    succeeded: bool
    text: str
    """Sent to the squad as a message."""
    reason: str | None = None
    usage: Usage | None = None
    answered: bool = False
    """Whether the agent was called and succeeded."""
    data: dict[str, Any] | None = None
    ours: bool = False
    """Whether the failure was the orchestrator's, and says nothing about the job."""


def succeeded(text: str, *, usage: Usage | None = None, answered: bool = False, **data: Any) -> Report:
    """Return the report of an attempt that succeeded."""
    return Report(succeeded=True, text=text, usage=usage, answered=answered, data=data)


def failed(job: str, reason: str, *, usage: Usage | None = None, ours: bool = False, **data: Any) -> Report:
    """Return the report of an attempt that failed."""
    # The reason may quote arbitrary text.
    reason = storable(reason)
    return Report(
        succeeded=False,
        text=f"{job} failed: {reason}",
        reason=reason,
        usage=usage,
        data=data,
        ours=ours,
    )


@dataclass(frozen=True)
class Work:
    """One attempt of a run, and what it works with."""

    writer: Writer
    client: AgentClient
    job: JobRow
    run: RunRow
    fencing_token: int
    """That of the attempt's claim on the job's resources; without one, the position at which it began."""
    failure_counts: Counter[str] = field(default_factory=Counter)
    """By e-mail, how often work in this process left it waiting; such e-mails go behind the others."""
    notes: set[str] = field(default_factory=set)
    """What the report mentions besides the outcome."""

    @property
    def squad(self) -> Squad:
        """The state in memory."""
        return self.writer.squad

    @property
    def agent(self) -> str:
        """The agent that is called."""
        assert self.job.agent
        return self.job.agent

    @property
    def may_call(self) -> bool:
        """Whether agents may be called: not while the orchestrator is shut down."""
        orchestrator = self.squad.orchestrator
        return orchestrator is not None and orchestrator.running

    async def submit(self, command: AnyCommand) -> Outcome:
        """Submit a command as the scheduler, for this run; wait for its outcome even if cancelled."""
        request = Request(command, ACTOR, correlation_id=self.run.id)
        return await complete_despite_cancel(self.writer.submit(request))

    async def call(self, endpoint: str, fencing_token: int, *, email_id: str | None = None) -> Reply:
        """Call the job's agent, about one e-mail if `email_id` is given."""
        row = self.squad.rows(AGENTS).get(self.agent)
        message_id = self.run.id
        payload: dict[str, Any] = {
            "run_id": self.run.id,
            "job": self.job.name,
            "tick": self.run.tick,
            "attempt": self.run.attempts,
            "fencing_token": fencing_token,
        }
        if email_id:
            # A run makes many of these calls, each with an id of its own.
            message_id += f"_{email_id}"
            payload["email_id"] = email_id
        url = row.url if row else None
        quote = not self.writer.encrypts
        reply = await self.client.call(self.agent, url, endpoint, message_id, payload, quote=quote)
        if is_misreported(reply.body):
            self.notes.add("the agent's report of its tokens was not understood")
        return reply


async def complete_despite_cancel(coroutine: Coroutine[Any, Any, T]) -> T:
    """Wait for an outcome even if the caller is cancelled; the cancellation takes effect at its next await.

    Otherwise nobody would learn what a command in flight acquired, and nobody could release it.
    """
    waiting = asyncio.current_task()
    assert waiting is not None
    task = asyncio.ensure_future(coroutine)
    cancellations = 0
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancellations += 1
    for _ in range(cancellations):
        # Keep the count unchanged: timeouts use it to recognize their own cancellation.
        waiting.uncancel()
        waiting.cancel()
    return task.result()

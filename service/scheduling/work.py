"""One attempt of a run: what it works with, and the report that it ends in.

Whatever an attempt does it does by the same commands that agents send, so it is claimed, budgeted and
logged like their own work.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from projections.agents import AGENTS
from service.requests import Request
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
    """Told the squad in a message."""
    reason: str | None = None
    tokens_used: int | None = None
    answered: bool = False
    """Whether the agent was called and did what it was asked."""
    data: dict[str, Any] | None = None
    ours: bool = False
    """Whether it failed by the orchestrator, which says nothing of the job."""


def succeeded(text: str, *, tokens_used: int | None = None, answered: bool = False, **data: Any) -> Report:
    """An attempt that did what it should."""
    return Report(succeeded=True, text=text, tokens_used=tokens_used, answered=answered, data=data)


def failed(
    job: str, reason: str, *, tokens_used: int | None = None, ours: bool = False, **data: Any
) -> Report:
    """An attempt that did not."""
    # It may quote anybody.
    reason = storable(reason)
    return Report(
        succeeded=False,
        text=f"{job} failed: {reason}",
        reason=reason,
        tokens_used=tokens_used,
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
    """Of the claim that the run holds on its job's resources, otherwise of the run."""
    setbacks: Counter[str] = field(default_factory=Counter)
    """How often an e-mail waited still after work on it in this process; such ones go behind the others."""

    @property
    def squad(self) -> Squad:
        """The state in memory."""
        return self.writer.squad

    @property
    def agent(self) -> str:
        """Who is called."""
        assert self.job.agent
        return self.job.agent

    @property
    def may_call(self) -> bool:
        """Whether agents may be called: not while the orchestrator is shut down."""
        orchestrator = self.squad.orchestrator
        return orchestrator is not None and orchestrator.running

    async def do(self, command: AnyCommand) -> Outcome:
        """Has a command carried out, as the scheduler, in the name of this run; never leaves it halfway."""
        request = Request(command, ACTOR, correlation_id=self.run.id)
        return await seen_through(self.writer.submit(request))

    async def call(self, endpoint: str, fencing_token: int, *, email_id: str | None = None) -> Reply:
        """Calls the job's agent, about an e-mail or in general."""
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
            # A run has many of these calls, and none repeats another.
            message_id += f"_{email_id}"
            payload["email_id"] = email_id
        return await self.client.call(self.agent, row.url if row else None, endpoint, message_id, payload)


async def seen_through(coroutine: Coroutine[Any, Any, T]) -> T:
    """Waits for an outcome also where the caller is cancelled meanwhile; that counts from its next wait on.

    Otherwise nobody would know what a command took that was under way, and nobody could give it back.
    """
    waiting = asyncio.current_task()
    assert waiting is not None
    task = asyncio.ensure_future(coroutine)
    held_back = 0
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            held_back += 1
    for _ in range(held_back):
        # The count stays as it was: timeouts tell by it whose cancellation it is.
        waiting.uncancel()
        waiting.cancel()
    return task.result()

"""What a run does: call an agent's endpoint, or one of the orchestrator's own tasks.

Each task ends in a report: what is told the squad, what was used. Whatever it does on the way is done by
the same commands that agents send, so it is claimed, budgeted and logged like their own work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from projections.agents import AGENTS
from projections.emails import EMAILS, EmailRow
from service import commands as do
from service import views
from service.requests import Request
from service.values import check_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from projections.jobs import JobRow, RunRow
    from service.calls import Caller, Reply
    from service.requests import Outcome
    from service.squad import Squad
    from service.writer import Writer

ACTOR = "system:scheduler"

POLL_ENDPOINT = "/api/agents/email/poll"
CLASSIFY_ENDPOINT = "/api/agents/email/classify"
RESPOND_ENDPOINT = "/api/agents/email/respond"

POLL_TOKENS_UNREPORTED = 500
"""What a poll counts as where the agent does not say; the seed's figure, like those below."""

MAX_KEPT_BYTES = 16 * 1024
"""How much of an agent's answer goes into the log."""


class Report(NamedTuple):
    """How an attempt ended."""

    succeeded: bool
    text: str
    """Told the squad in a message."""
    reason: str | None = None
    tokens_used: int | None = None
    data: dict[str, Any] | None = None


def succeeded(text: str, *, tokens_used: int | None = None, **data: Any) -> Report:
    """An attempt that did what it should."""
    return Report(succeeded=True, text=text, tokens_used=tokens_used, data=data)


def failed(job: str, reason: str, *, tokens_used: int | None = None, **data: Any) -> Report:
    """An attempt that did not."""
    reason = reason.replace("\x00", "")
    return Report(
        succeeded=False, text=f"{job} failed: {reason}", reason=reason, tokens_used=tokens_used, data=data
    )


class EmailWork(NamedTuple):
    """A kind of work on e-mails, with the seed's figures."""

    action: str
    endpoint: str
    at_most: int
    tokens: int
    tokens_unreported: int
    wanted: Callable[[EmailRow], bool]


CLASSIFY = EmailWork(
    "classify", CLASSIFY_ENDPOINT, 10, 500, 300, lambda row: row.category == "unclassified"
)
RESPOND = EmailWork("respond", RESPOND_ENDPOINT, 5, 800, 600, lambda row: row.status == "classified")


@dataclass(frozen=True)
class Work:
    """One attempt of a run, and what it works with."""

    writer: Writer
    caller: Caller
    job: JobRow
    run: RunRow

    @property
    def squad(self) -> Squad:
        """The state in memory."""
        return self.writer.squad

    @property
    def agent(self) -> str:
        """Who is called."""
        assert self.job.agent
        return self.job.agent

    async def do(self, command: do.AnyCommand) -> Outcome:
        """Has a command carried out, as the scheduler, in the name of this run."""
        return await self.writer.submit(Request(command, ACTOR, correlation_id=self.run.id))

    async def call(self, endpoint: str, fencing_token: int, **more: Any) -> Reply:
        """Calls the job's agent."""
        row = self.squad.rows(AGENTS).get(self.agent)
        payload = {
            "run_id": self.run.id,
            "job": self.job.name,
            "tick": self.run.tick,
            "attempt": self.run.attempts,
            "fencing_token": fencing_token,
            **more,
        }
        return await self.caller.call(self.agent, row.url if row else None, endpoint, self.run.id, payload)


async def perform(work: Work) -> Report:
    """Does what the job says."""
    if work.job.endpoint:
        return await _call_endpoint(work, work.job.endpoint, work.job.tokens)
    return await TASKS[work.job.task or ""](work)


async def _call_endpoint(work: Work, endpoint: str, tokens_unreported: int) -> Report:
    reply = await work.call(endpoint, work.run.fencing_token)
    name, tokens = work.job.name, reply.tokens_used
    if not reply.ok:
        return failed(name, reply.reason or "it failed", tokens_used=tokens)
    used = tokens_unreported if tokens is None else tokens
    return succeeded(f"{name} succeeded", tokens_used=used, result=_keepable(reply.body))


def _keepable(body: Any) -> Any:
    """An agent's answer as far as the log can hold it."""
    try:
        check_json(body)
        size = len(orjson.dumps(body))
    except (ValueError, TypeError):
        return "an answer that cannot be kept"
    return body if size <= MAX_KEPT_BYTES else f"an answer of {size} bytes"


async def _poll(work: Work) -> Report:
    return await _call_endpoint(work, POLL_ENDPOINT, POLL_TOKENS_UNREPORTED)


# Work on e-mails --------------------------------------------------------------------------------------


async def _work_on_emails(work: Work, kind: EmailWork) -> Report:
    waiting = sorted(
        (row for row in work.squad.all(EMAILS) if kind.wanted(row)), key=lambda row: row.created_position
    )
    done: list[str] = []
    left: dict[str, str] = {}
    for email in waiting[: kind.at_most]:
        problem = await _one_email(work, kind, email)
        if problem is None:
            done.append(email.id)
            continue
        code, reason = problem
        left[email.id] = reason
        if code in ("budget_exhausted", "agent_limit_reached"):
            break
    data: dict[str, Any] = {"done": done, "left": left, "waiting": len(waiting)}
    if left and not done:
        return failed(work.job.name, next(iter(left.values())), **data)
    text = f"{work.job.name}: {len(done)} of {len(waiting)} e-mails done"
    if left:
        text += f", {len(left)} left for later"
    return succeeded(text, **data)


async def _one_email(work: Work, kind: EmailWork, email: EmailRow) -> tuple[str, str] | None:
    """Works on one e-mail; None where it is done, otherwise why not."""
    claimed = await work.do(
        do.StartOperation(agent=work.agent, action=kind.action, resources={"emailId": email.id})
    )
    if claimed.refusal:
        # Whoever watches the messages sees why this one waits.
        text = f"{kind.action} of e-mail {email.id} is left for later: {claimed.refusal.detail}"
        await work.do(do.SendMessage(from_agent=work.agent, to_agent="orchestrator", message=text))
        return claimed.refusal.code, claimed.refusal.detail
    operation_id = claimed.reply["id"]
    reserved = await work.do(do.ReserveTokens(agent=work.agent, tokens=kind.tokens))
    if reserved.refusal:
        await work.do(do.FinishOperation(operation_id=operation_id, outcome="cancelled"))
        return reserved.refusal.code, reserved.refusal.detail
    reply: Reply | None = None
    try:
        async with _holding(work, operation_id):
            reply = await work.call(kind.endpoint, claimed.reply["fencing_token"], email_id=email.id)
    finally:
        await _settle(work, kind, reserved.reply["id"], operation_id, reply)
    return None if reply.ok else ("failed", reply.reason or "it failed")


async def _settle(
    work: Work, kind: EmailWork, reservation_id: str, operation_id: str, reply: Reply | None
) -> None:
    """Gives back what was taken for an e-mail, also where the attempt was cut short."""
    used = reply.tokens_used if reply else None
    if reply and reply.ok and used is None:
        used = kind.tokens_unreported
    if used is None:
        await work.do(do.ReleaseReservation(reservation_id=reservation_id))
    else:
        await work.do(do.SettleReservation(reservation_id=reservation_id, tokens_used=used))
    outcome = "succeeded" if reply and reply.ok else "failed" if reply else "cancelled"
    await work.do(do.FinishOperation.model_validate({"operation_id": operation_id, "outcome": outcome}))


@asynccontextmanager
async def _holding(work: Work, operation_id: str) -> AsyncIterator[None]:
    """Keeps a claim for as long as the work on it takes."""

    async def renew() -> None:
        while True:
            window = work.squad.policy.conflict_window_seconds
            await asyncio.sleep(window / 3)
            await work.do(do.RenewOperation(operation_id=operation_id))

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()


async def _classify(work: Work) -> Report:
    return await _work_on_emails(work, CLASSIFY)


async def _respond(work: Work) -> Report:
    return await _work_on_emails(work, RESPOND)


# The orchestrator's own housekeeping ----------------------------------------------------------------------


async def _update_statuses(work: Work) -> Report:
    await work.do(do.PassTime())
    counts: dict[str, int] = {"active": 0, "idle": 0, "offline": 0}
    for row in work.squad.all(AGENTS):
        counts[row.status] += 1
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    return succeeded(f"Agents: {text}", **counts)


async def _check_conflicts(work: Work) -> Report:
    await work.do(do.PassTime())
    active = views.active_operations(work.squad)
    shown = [
        {"id": row.id, "agent": row.agent, "action": row.action, "resources": row.resources}
        for row in active[:100]
    ]
    return succeeded(f"Operations under way: {len(active)}", operations=shown)


async def _monitor_tokens(work: Work) -> Report:
    await work.do(do.PassTime())
    day = work.squad.day
    if day is None:
        return succeeded("No budget day has begun")
    percent = round(100 * day.used / day.total) if day.total else 100
    crossed = [limit for limit in work.squad.policy.warning_percents if percent >= limit]
    word = f"Token use has passed {max(crossed)} %" if crossed else "Token use is within bounds"
    text = f"{word}: {day.used} of {day.total} tokens ({percent} %) used on {day.day}"
    return succeeded(text, used=day.used, total=day.total, percent=percent)


async def _reset_tokens(work: Work) -> Report:
    await work.do(do.PassTime())
    day = work.squad.day
    if day is None:
        return succeeded("No budget day has begun")
    return succeeded(f"Budget day {day.day}: {day.used} of {day.total} tokens used, until {day.ends_at}")


TASKS: dict[str, Callable[[Work], Awaitable[Report]]] = {
    "email_poll": _poll,
    "email_classify": _classify,
    "email_respond": _respond,
    "status_update": _update_statuses,
    "conflict_check": _check_conflicts,
    "token_monitor": _monitor_tokens,
    "token_reset": _reset_tokens,
}
"""Every built-in task by its name; `service.job_spec.BUILT_IN_TASKS` has the same names."""

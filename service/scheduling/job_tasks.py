"""What a run does: call an agent's endpoint, or perform one of the built-in tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from projections.agents import AGENTS
from service import commands as do
from service import views
from service.commands import Usage
from service.scheduling.email_work import CLASSIFY, RESPOND, work_on_emails
from service.scheduling.work import Report, Work, failed, succeeded
from service.values import check_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLL_ENDPOINT = "/api/agents/email/poll"

POLL_TOKENS_UNREPORTED = 500
"""Tokens charged for a poll if the agent reports none; the figure of the seed specification."""

MAX_STORED_BYTES = 16 * 1024
"""Size up to which an agent's answer is stored in the log."""


async def perform(work: Work) -> Report:
    """Perform an attempt of a job; call no agent while the orchestrator is shut down."""
    if work.job.agent and not work.may_call:
        return failed(work.job.name, "the orchestrator was shut down", ours=True)
    if work.job.endpoint:
        report = await _call_endpoint(work, work.job.endpoint, work.job.tokens)
    else:
        report = await TASKS[work.job.task or ""](work)
    return report._replace(text="; ".join([report.text, *sorted(work.notes)]))


async def _call_endpoint(work: Work, endpoint: str, tokens_unreported: int) -> Report:
    reply = await work.call(endpoint, work.fencing_token)
    name = work.job.name
    if not reply.ok:
        return failed(name, reply.reason or "it failed", usage=reply.usage)
    usage = reply.usage or Usage(tokens_unreported)
    return succeeded(f"{name} succeeded", usage=usage, answered=True, **_storable(reply.body))


def _storable(body: Any) -> dict[str, Any]:
    """Return an agent's answer, or a placeholder if the log cannot store it."""
    try:
        stored = check_json({"result": body})
        size = len(orjson.dumps(body))
    except (ValueError, TypeError):
        return {"result": "an answer that cannot be stored"}
    return dict(stored) if size <= MAX_STORED_BYTES else {"result": f"an answer of {size} bytes"}


async def _poll(work: Work) -> Report:
    return await _call_endpoint(work, POLL_ENDPOINT, POLL_TOKENS_UNREPORTED)


async def _classify(work: Work) -> Report:
    return await work_on_emails(work, CLASSIFY)


async def _respond(work: Work) -> Report:
    return await work_on_emails(work, RESPOND)


# The orchestrator's own housekeeping ----------------------------------------------------------------------


async def _update_statuses(work: Work) -> Report:
    await work.submit(do.PassTime())
    counts: dict[str, Any] = {"active": 0, "idle": 0, "offline": 0}
    for row in work.squad.all(AGENTS):
        counts[row.status] += 1
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    return succeeded(f"Agents: {text}", **counts)


async def _check_conflicts(work: Work) -> Report:
    await work.submit(do.PassTime())
    active = list(views.active_operations(work.squad))
    shown = [
        {"id": row.id, "agent": row.agent, "action": row.action, "resources": row.resources}
        for row in active[:100]
    ]
    return succeeded(f"Active operations: {len(active)}", operations=shown)


async def _monitor_tokens(work: Work) -> Report:
    await work.submit(do.PassTime())
    day = work.squad.day
    if day is None:
        return succeeded("No budget day has begun")
    percent = round(100 * day.used / day.total) if day.total else 100
    crossed = [limit for limit in work.squad.policy.warning_percents if percent >= limit]
    word = f"Token use has passed {max(crossed)}%" if crossed else "Token use is within bounds"
    text = f"{word}: {day.used} of {day.total} tokens ({percent}%) used on {day.day}"
    return succeeded(text, used=day.used, total=day.total, percent=percent)


async def _reset_tokens(work: Work) -> Report:
    await work.submit(do.PassTime())
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
"""The built-in tasks by name; `service.job_spec.BUILT_IN_TASKS` has the same names."""

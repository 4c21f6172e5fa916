"""Work on e-mails that wait: each is budgeted, claimed, handed to the agent, and let go again.

What is taken for an e-mail is given back on every way out: done, failed, timed out, cancelled, stopped. Of
a process that vanished the claim and the reservation expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from eventstore.events import ERASED
from projections.emails import EMAILS, EmailRow
from service import commands as do
from service.values import MAX_TTL_SECONDS
from service.work import NOT_NOW, Report, Work, failed, succeeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.calls import Reply

CLASSIFY_ENDPOINT = "/api/agents/email/classify"
RESPOND_ENDPOINT = "/api/agents/email/respond"

_RESERVED_LONGER_SECONDS = 60.0
"""How much longer than its attempt may take a reservation is held."""


class EmailWork(NamedTuple):
    """A kind of work on e-mails, with the seed's figures."""

    action: str
    endpoint: str
    at_most: int
    tokens: int
    tokens_unreported: int
    claims_first: bool
    """Whether a conflict is looked for before tokens are set aside, or after."""
    wanted: Callable[[EmailRow], bool]


CLASSIFY = EmailWork(
    action="classify",
    endpoint=CLASSIFY_ENDPOINT,
    at_most=10,
    tokens=500,
    tokens_unreported=300,
    claims_first=False,
    wanted=lambda row: row.category == "unclassified",
)
RESPOND = EmailWork(
    action="respond",
    endpoint=RESPOND_ENDPOINT,
    at_most=5,
    tokens=800,
    tokens_unreported=600,
    claims_first=True,
    wanted=lambda row: row.status == "classified",
)


class _Left(NamedTuple):
    """Why an e-mail is left for later."""

    because: Literal["conflict", "budget", "failure"]
    reason: str


class _Taken(NamedTuple):
    """What was taken for an e-mail."""

    operation_id: str
    fencing_token: int
    reservation_id: str


async def work_on_emails(work: Work, kind: EmailWork) -> Report:
    """Works on those that wait, the oldest first; stops when the budget refuses."""
    # In one that was erased with its sender there is nothing to classify or to answer.
    waiting = [row for row in work.squad.all(EMAILS) if kind.wanted(row) and row.from_email != ERASED]
    # Whatever is wrong with some of them, the others have their turn.
    waiting.sort(key=lambda row: (work.setbacks[row.id], row.created_position))
    deadline = asyncio.get_running_loop().time() + work.job.timeout_seconds
    done: list[str] = []
    left: dict[str, _Left] = {}
    for email in waiting[: kind.at_most]:
        if not work.may_call:
            break
        problem = await _one_email(work, kind, email, deadline)
        if problem is None:
            done.append(email.id)
            work.setbacks.pop(email.id, None)
            continue
        left[email.id] = problem
        if problem.because == "failure":
            work.setbacks[email.id] += 1
        if problem.because == "budget":
            break
    return _report(work, waiting, done, left)


def _report(work: Work, waiting: list[EmailRow], done: list[str], left: dict[str, _Left]) -> Report:
    reasons = {email_id: problem.reason for email_id, problem in left.items()}
    data: dict[str, Any] = {"done": done, "left": reasons, "waiting": len(waiting)}
    failures = [problem.reason for problem in left.values() if problem.because == "failure"]
    if failures and not done:
        return failed(work.job.name, failures[0], **data)
    text = f"{work.job.name}: {len(done)} of {len(waiting)} e-mails done"
    if left:
        text += f", {len(left)} left for later"
    if any(problem.because == "budget" for problem in left.values()):
        text += "; the budget allows no more"
    return succeeded(text, answered=bool(done), **data)


async def _one_email(work: Work, kind: EmailWork, email: EmailRow, deadline: float) -> _Left | None:
    """Works on one e-mail; None where it is done, otherwise why not."""
    taken = await _take(work, kind, email)
    if isinstance(taken, _Left):
        return taken
    reply: Reply | None = None
    # One that hangs takes half of the time that is left, so that it cannot take all of it every time.
    half = (deadline - asyncio.get_running_loop().time()) / 2
    try:
        async with _holding(work, taken.operation_id), asyncio.timeout(half):
            reply = await work.call(kind.endpoint, taken.fencing_token, email_id=email.id)
    except TimeoutError:
        return _Left("failure", f"the agent did not answer within {half:.3g} seconds")
    finally:
        await _give_back(work, kind, taken, reply)
    return None if reply.ok else _Left("failure", reply.reason or "it failed")


async def _take(work: Work, kind: EmailWork, email: EmailRow) -> _Taken | _Left:
    """Tokens and the claim, or neither."""
    claim = do.StartOperation(agent=work.agent, action=kind.action, resources={"emailId": email.id})
    held_seconds = min(work.job.timeout_seconds + _RESERVED_LONGER_SECONDS, MAX_TTL_SECONDS)
    reserve = do.ReserveTokens(agent=work.agent, tokens=kind.tokens, ttl_seconds=held_seconds)
    if kind.claims_first:
        claimed = await work.do(claim)
        if claimed.refusal:
            return await _tell_of_conflict(work, kind, email, claimed.refusal.detail)
        reserved = await work.do(reserve)
        if reserved.refusal:
            await work.do(do.FinishOperation(operation_id=claimed.reply["id"], outcome="cancelled"))
            return _Left("budget", reserved.refusal.detail)
    else:
        reserved = await work.do(reserve)
        if reserved.refusal:
            return _Left("budget", reserved.refusal.detail)
        claimed = await work.do(claim)
        if claimed.refusal:
            await work.do(do.ReleaseReservation(reservation_id=reserved.reply["id"]))
            return await _tell_of_conflict(work, kind, email, claimed.refusal.detail)
    return _Taken(claimed.reply["id"], claimed.reply["fencing_token"], reserved.reply["id"])


async def _tell_of_conflict(work: Work, kind: EmailWork, email: EmailRow, detail: str) -> _Left:
    """Whoever watches the messages sees why this one waits."""
    text = f"{kind.action} of e-mail {email.id} is left for later: {detail}"
    await work.do(do.SendMessage(from_agent=work.agent, to_agent="orchestrator", message=text))
    return _Left("conflict", detail)


async def _give_back(work: Work, kind: EmailWork, taken: _Taken, reply: Reply | None) -> None:
    """Settles the tokens and ends the claim, also where the call was cut short."""
    used = reply.tokens_used if reply else None
    if reply and reply.ok and used is None:
        used = kind.tokens_unreported
    outcome: Literal["succeeded", "failed", "cancelled"]
    outcome = "cancelled" if reply is None else "succeeded" if reply.ok else "failed"
    try:
        if used is None:
            await work.do(do.ReleaseReservation(reservation_id=taken.reservation_id))
        else:
            settle = do.SettleReservation(reservation_id=taken.reservation_id, tokens_used=used)
            if (await work.do(settle)).refusal:
                # The reservation is over, such as one that expired; what was spent was spent all the same.
                await work.do(do.RecordUsage(agent=work.agent, tokens=used))
    finally:
        await work.do(do.FinishOperation(operation_id=taken.operation_id, outcome=outcome))


@asynccontextmanager
async def _holding(work: Work, operation_id: str) -> AsyncIterator[None]:
    """Keeps a claim for as long as the work on it takes."""

    async def renew() -> None:
        while True:
            policy = work.squad.policy
            shortest = min(policy.conflict_window_seconds, policy.operation_timeout_seconds)
            await asyncio.sleep(shortest / 3)
            with suppress(*NOT_NOW):
                if (await work.do(do.RenewOperation(operation_id=operation_id))).refusal:
                    return

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)

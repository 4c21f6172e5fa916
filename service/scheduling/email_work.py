"""Work on waiting e-mails: reserve tokens for each, claim it, hand it to the agent, and release both.

Claim and reservation are released on every way out: done, failed, timed out, cancelled, stopped. Those of a
process that vanished expire.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from eventstore.events import ERASED
from projections.emails import EMAILS, EmailRow
from service import commands as do
from service.background import background
from service.decide.operations import renewal_seconds
from service.requests import NoOutcome
from service.scheduling.work import Report, Work, failed, succeeded
from service.values import MAX_TTL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.events import OperationOutcome
    from service.scheduling.calls import Reply

CLASSIFY_ENDPOINT = "/api/agents/email/classify"
RESPOND_ENDPOINT = "/api/agents/email/respond"

_RESERVATION_MARGIN_SECONDS = 60.0
"""How much longer a reservation is held than its attempt may take."""


class EmailWork(NamedTuple):
    """A kind of work on e-mails, with the figures from the seed specification."""

    action: str
    endpoint: str
    max_emails: int
    tokens: int
    tokens_unreported: int
    claims_first: bool
    """Whether the e-mail is claimed before tokens are reserved, rather than after."""
    is_waiting: Callable[[EmailRow], bool]
    waiting: str
    """What an e-mail is called that waits for it."""


CLASSIFY = EmailWork(
    action="classify",
    endpoint=CLASSIFY_ENDPOINT,
    max_emails=10,
    tokens=500,
    tokens_unreported=300,
    claims_first=False,
    is_waiting=lambda row: row.category == "unclassified",
    waiting="unclassified",
)
RESPOND = EmailWork(
    action="respond",
    endpoint=RESPOND_ENDPOINT,
    max_emails=5,
    tokens=800,
    tokens_unreported=600,
    claims_first=True,
    is_waiting=lambda row: row.status == "classified",
    waiting="classified",
)


_SkipCause = Literal["conflict", "budget", "failure", "obsolete", "unchanged"]


class _SkipReason(NamedTuple):
    """Why an e-mail is left. Stored instead of the exception, whose traceback references its frames.

    Together they would form a cycle, which keeps the agents' answers in memory until garbage is collected.
    """

    cause: _SkipCause
    reason: str


class _Skipped(Exception):
    """An e-mail is left for later, or no longer needs work."""

    def __init__(self, cause: _SkipCause, reason: str) -> None:
        super().__init__(reason)
        self.why = _SkipReason(cause, reason)


@dataclass
class _Held:
    """What is held for an e-mail, and the outcome of its call."""

    fencing_token: int = 0
    """The claim's."""
    reply: Reply | None = None
    """None if the agent was not called, or the call was cut short."""
    lost: str | None = None
    """Why the claim was lost; None while it is held."""
    call: asyncio.Timeout | None = None
    """The timeout of the call in flight."""

    def mark_lost(self, reason: str) -> None:
        """Note that the claim was lost, and abort the call: another agent may hold the e-mail now."""
        self.lost = reason
        if self.call:
            self.call.reschedule(asyncio.get_running_loop().time())


async def work_on_emails(work: Work, kind: EmailWork) -> Report:
    """Work on the waiting e-mails, oldest first; stop when the budget refuses."""
    for email_id in [known for known in work.failure_counts if work.squad.rows(EMAILS).get(known) is None]:
        del work.failure_counts[email_id]
    waiting = [row for row in work.squad.all(EMAILS) if _needs_work(kind, row)]
    # E-mails that keep failing must not starve the others.
    waiting.sort(key=lambda row: (work.failure_counts[row.id], row.created_position))
    deadline = asyncio.get_running_loop().time() + work.job.timeout_seconds
    done: list[str] = []
    left: dict[str, _SkipReason] = {}
    for email in waiting[: kind.max_emails]:
        if not work.may_call:
            break
        try:
            await _process_email(work, kind, email.id, deadline)
        except _Skipped as problem:
            left[email.id] = problem.why
            if problem.why.cause == "budget":
                break
        else:
            done.append(email.id)
        if _needs_work(kind, work.squad.rows(EMAILS).get(email.id)):
            work.failure_counts[email.id] += 1
        else:
            work.failure_counts.pop(email.id, None)
    return _report(work, kind, len(waiting), done, left)


def _needs_work(kind: EmailWork, row: EmailRow | None) -> bool:
    """Whether an e-mail needs this work. One that was erased with its sender does not."""
    return row is not None and kind.is_waiting(row) and row.from_email != ERASED


def _report(
    work: Work, kind: EmailWork, waiting: int, done: list[str], left: dict[str, _SkipReason]
) -> Report:
    reasons = {email_id: why.reason for email_id, why in left.items()}
    data: dict[str, Any] = {"done": done, "left": reasons, "waiting": waiting}
    failures = [why.reason for why in left.values() if why.cause == "failure"]
    cause = Counter(why.cause for why in left.values())
    answered = bool(done or cause["unchanged"])
    if failures and not answered:
        return failed(work.job.name, failures[0], **data)
    text = f"{work.job.name}: {len(done)} of {waiting} e-mails done"
    if for_later := len(left) - cause["obsolete"] - cause["unchanged"]:
        text += f", {for_later} left for later"
    if cause["unchanged"]:
        text += f", {cause['unchanged']} still {kind.waiting}"
    if cause["obsolete"]:
        text += f", {cause['obsolete']} no longer waiting"
    if cause["budget"]:
        text += "; the budget allows no more"
    return succeeded(text, answered=answered, **data)


async def _process_email(work: Work, kind: EmailWork, email_id: str, deadline: float) -> None:
    """Work on one e-mail.

    Raises:
        _Skipped: it was not done.
    """
    held = _Held()
    to_acquire = [_claim_email(work, kind, email_id, held), _reserve_tokens(work, kind, held)]
    async with AsyncExitStack() as stack:
        for acquiring in to_acquire if kind.claims_first else reversed(to_acquire):
            await stack.enter_async_context(acquiring)
        # It was chosen a while ago; another agent may have claimed, finished and released it since.
        if not _needs_work(kind, work.squad.rows(EMAILS).get(email_id)):
            raise _Skipped("obsolete", "it was finished or erased meanwhile")
        if held.lost:
            raise _Skipped("conflict", held.lost)
        # A call may use half of the remaining time, so that one that hangs cannot use it up each time.
        half = (deadline - asyncio.get_running_loop().time()) / 2
        try:
            async with asyncio.timeout(half) as held.call:
                held.reply = await work.call(kind.endpoint, held.fencing_token, email_id=email_id)
        except TimeoutError as error:
            if held.lost:
                raise _Skipped("conflict", held.lost) from error
            raise _Skipped("failure", f"the agent did not answer within {half:.3g} seconds") from error
        finally:
            held.call = None
    if not held.reply.ok:
        raise _Skipped("failure", held.reply.reason or "it failed")
    # The end of the claim was decided after the answer, so what the agent changed before it is in memory.
    if _needs_work(kind, work.squad.rows(EMAILS).get(email_id)):
        raise _Skipped("unchanged", f"the agent answered, but left it {kind.waiting}")


@asynccontextmanager
async def _reserve_tokens(work: Work, kind: EmailWork, held: _Held) -> AsyncIterator[None]:
    """Reserve tokens for a call; settle with what it used, or release them if it used none.

    Raises:
        _Skipped: the budget refuses.
    """
    seconds = min(work.job.timeout_seconds + _RESERVATION_MARGIN_SECONDS, MAX_TTL_SECONDS)
    outcome = await work.submit(do.ReserveTokens(agent=work.agent, tokens=kind.tokens, ttl_seconds=seconds))
    if outcome.refusal:
        raise _Skipped("budget", outcome.refusal.detail)
    reservation_id = outcome.reply["id"]
    try:
        yield
    finally:
        used = held.reply.usage if held.reply else None
        if held.reply and held.reply.ok and used is None:
            used = do.Usage(kind.tokens_unreported)
        if used is None:
            await work.submit(do.ReleaseReservation(reservation_id=reservation_id))
        else:
            settle = do.SettleReservation(reservation_id=reservation_id, **used._asdict())
            if (await work.submit(settle)).refusal:
                # The reservation has ended, for example expired; the tokens were spent all the same.
                tokens, input_tokens, output_tokens, model = used
                record = do.RecordUsage(
                    agent=work.agent,
                    tokens=tokens,
                    input_tokens=input_tokens,
                    output_tokens=output_tokens,
                    model=model,
                )
                await work.submit(record)


@asynccontextmanager
async def _claim_email(work: Work, kind: EmailWork, email_id: str, held: _Held) -> AsyncIterator[None]:
    """Claim an e-mail, and keep the claim while the work on it lasts.

    Raises:
        _Skipped: another agent holds a conflicting claim. A message to the orchestrator says so.
    """
    outcome = await work.submit(
        do.StartOperation(agent=work.agent, action=kind.action, resources={"emailId": email_id})
    )
    if outcome.refusal:
        detail = outcome.refusal.detail
        text = f"{kind.action} of e-mail {email_id} is left for later: {detail}"
        await work.submit(do.SendMessage(from_agent=work.agent, to_agent="orchestrator", message=text))
        raise _Skipped("conflict", detail)
    operation_id = outcome.reply["id"]
    held.fencing_token = outcome.reply["fencing_token"]
    try:
        async with background(_renew(work, operation_id, held)):
            yield
    finally:
        result: OperationOutcome = "cancelled"
        if held.reply:
            result = "succeeded" if held.reply.ok else "failed"
        await work.submit(do.FinishOperation(operation_id=operation_id, outcome=result))


async def _renew(work: Work, operation_id: str, held: _Held) -> None:
    """Renew a claim, well before it expires, until a renewal is refused."""
    while True:
        await asyncio.sleep(renewal_seconds(work.squad.policy))
        with suppress(NoOutcome):
            outcome = await work.submit(do.RenewOperation(operation_id=operation_id))
            if outcome.refusal:
                held.mark_lost(outcome.refusal.detail)
                return

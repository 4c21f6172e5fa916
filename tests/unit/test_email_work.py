"""Tokens and claims of waiting e-mails, and their release on the way out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from eventstore.events import TokensReleased, TokensReserved, TokensSettled, TokensUsed
from projections.operations import OPERATIONS
from service import commands as do
from service.scheduling.calls import Reply
from service.scheduling.email_work import CLASSIFY, RESPOND, EmailWork, work_on_emails
from service.scheduling.work import Work
from tests.unit.job_stories import a_squad, job_row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventstore.events import Event
    from service.requests import Outcome, Request
    from service.scheduling.work import Report
    from tests.unit.stories import Story

DONE = Reply(ok=True, reason=None, body={}, usage=None)
FAILED = Reply(ok=False, reason="no model", body={}, usage=None)


class Attempt:
    """One attempt at a waiting e-mail. Its commands are decided in memory, as the writer does."""

    def __init__(self, kind: EmailWork, reply: Reply = DONE, **fields: Any) -> None:
        self.kind, self.reply = kind, reply
        self.story: Story = a_squad()
        self.story.given(
            do.LogEmail(
                gmail_message_id="g",
                from_email="ada@example.org",
                status="classified" if kind is RESPOND else "unread",
            )
        )
        self.squad = self.story.squad
        self.before: Callable[[do.Command], Awaitable[None]] | None = None
        self.encrypts = False
        self.calls = 0
        self.events: list[Event] = []
        run = SimpleNamespace(id="r", tick=self.story.now, attempts=1)
        self.work = Work(cast("Any", self), cast("Any", self), job_row(**fields), cast("Any", run), 1)

    async def submit(self, request: Request) -> Outcome:
        if self.before:
            await self.before(request.command)
        self.story.when(request)
        self.events += self.story.events
        return self.story.outcome

    async def call(self, *_: object, quote: bool) -> Reply:
        assert quote
        self.calls += 1
        return self.reply

    async def run(self) -> Report:
        return await work_on_emails(self.work, self.kind)

    def only(self, kind: type[Event]) -> Any:
        """The only event of a kind that the attempt recorded."""
        [event] = [event for event in self.events if type(event) is kind]
        return event


async def test_reservation_lasts_longer_than_the_whole_attempt_may_take() -> None:
    attempt = Attempt(CLASSIFY, timeout_seconds=600.0)
    start = attempt.story.now
    await attempt.run()
    held = attempt.only(TokensReserved).expires_at - start
    assert held.total_seconds() == 660


@pytest.mark.parametrize(
    ("reply", "counted"),
    [
        (DONE, 300),
        (DONE._replace(usage=do.Usage(0)), 0),
        (FAILED._replace(usage=do.Usage(9)), 9),
        (FAILED, None),
    ],
    ids=["done, not reported", "done, reported as 0", "failed, reported", "failed, not reported"],
)
async def test_used_tokens_count_and_the_rest_is_released(reply: Reply, counted: int | None) -> None:
    attempt = Attempt(CLASSIFY, reply)
    await attempt.run()
    if counted is None:
        attempt.only(TokensReleased)
    else:
        assert attempt.only(TokensSettled).tokens_used == counted
    assert attempt.squad.day is not None
    assert (attempt.squad.day.reserved, attempt.squad.day.used) == (0, counted or 0)


async def test_agent_is_not_called_when_the_claim_was_lost_before_the_call() -> None:
    """Reserving tokens can take long, and another agent may hold the e-mail by then."""
    attempt, lost = Attempt(RESPOND), asyncio.Event()
    attempt.story.given(do.SetPolicy(conflict_window_seconds=0.03))

    async def before(command: do.Command) -> None:
        if isinstance(command, do.ReserveTokens):
            [claim] = attempt.squad.all(OPERATIONS)
            attempt.story.given(do.FinishOperation(operation_id=claim.id, outcome="cancelled"))
            async with asyncio.timeout(5):
                await lost.wait()
        if isinstance(command, do.RenewOperation):
            asyncio.get_running_loop().call_soon(lost.set)

    attempt.before = before
    report = await attempt.run()
    assert attempt.calls == 0
    assert report.text == "poll: 0 of 1 e-mails done, 1 left for later"
    attempt.only(TokensReleased)
    assert not list(attempt.squad.all(OPERATIONS))


async def test_settlement_keeps_what_the_agent_reported() -> None:
    attempt = Attempt(CLASSIFY, DONE._replace(usage=do.Usage(42, 30, 12, "small")))
    await attempt.run()
    settled = attempt.only(TokensSettled)
    assert (settled.tokens_used, settled.input_tokens, settled.output_tokens) == (42, 30, 12)
    assert settled.model == "small"


async def test_usage_keeps_what_the_agent_reported_when_the_reservation_has_ended() -> None:
    attempt = Attempt(CLASSIFY, DONE._replace(usage=do.Usage(42, 30, 12, "small")))

    async def before(command: do.Command) -> None:
        if isinstance(command, do.SettleReservation):
            attempt.story.given(do.ReleaseReservation(reservation_id=command.reservation_id))

    attempt.before = before
    await attempt.run()
    used = attempt.only(TokensUsed)
    assert (used.tokens, used.input_tokens, used.output_tokens, used.model) == (42, 30, 12, "small")

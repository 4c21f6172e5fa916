"""Which e-mails have their turn, which are left for later, and which go behind the others."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Literal

import pytest

from eventstore.events import (
    ConflictDetected,
    MessageSent,
    OperationFinished,
    TokensDenied,
    TokensSettled,
)
from service import commands as do
from service.scheduling.email_work import CLASSIFY_ENDPOINT, _Skipped
from tests.support.agents import answers, drips
from tests.support.email_jobs import AGENT, assert_nothing_is_held, classifies, email_job, emails
from tests.support.jobs import running_member
from tests.support.parts import submit

if TYPE_CHECKING:
    from aiohttp import web

    from tests.support.agents import Agents
    from tests.support.jobs import Member


async def test_only_what_waits_is_worked_on(agents: Agents, member: Member) -> None:
    (first, second) = await emails(member, 2, classified=True)
    await submit(member.writer, do.UpdateEmail(email_id=first, status="draft_created"))
    await email_job(member, "email_classify")
    await email_job(member, "email_respond")
    await member.carry_out("email_classify")
    assert not agents.calls
    await member.carry_out("email_respond")
    assert [call.payload["email_id"] for call in agents.calls] == [second]


async def test_what_was_erased_with_its_sender_is_left_alone(agents: Agents, database: str) -> None:
    async with running_member(database, agents.url, encrypt=True) as member:
        await emails(member, 1)
        await submit(member.writer, do.ForgetSubject(subject="ada@example.org"))
        logged = do.LogEmail(gmail_message_id="another", from_email="bob@example.org")
        left = str((await submit(member.writer, logged)).reply["id"])
        await email_job(member, "email_classify")
        await member.carry_out("email_classify")
        assert [call.payload["email_id"] for call in agents.called(CLASSIFY_ENDPOINT)] == [left]


@pytest.mark.parametrize(("task", "budget"), [("email_classify", 1_000), ("email_respond", 1_700)])
async def test_where_the_budget_refuses_it_stops(
    agents: Agents, member: Member, task: str, budget: int
) -> None:
    await emails(member, 4, classified=task == "email_respond")
    # Classifying takes 300 of each 500 set aside, responding 600 of each 800: there is enough for two.
    await submit(member.writer, do.SetBudget(daily_tokens=budget))
    await email_job(member, task)
    finished = await member.carry_out(task)
    assert finished.outcome == "succeeded"
    assert len(agents.calls) == 2
    assert len(member.told(TokensDenied)) == 1
    (told,) = member.told(MessageSent)
    assert told.message == f"{task}: 2 of 4 e-mails done, 1 left for later; the budget allows no more"
    assert_nothing_is_held(member)


@pytest.mark.parametrize("task", ["email_classify", "email_respond"])
async def test_an_email_that_somebody_else_is_at_is_left_for_later_and_said_so(
    agents: Agents, member: Member, task: str
) -> None:
    taken, free = await emails(member, 2, classified=task == "email_respond")
    claim = do.StartOperation(agent="quote_agent", action="quote", resources={"emailId": taken})
    held = await submit(member.writer, claim)
    await email_job(member, task)
    finished = await member.carry_out(task)
    assert finished.outcome == "succeeded"
    assert [call.payload["email_id"] for call in agents.calls] == [free]
    (conflict,) = member.told(ConflictDetected)
    assert (conflict.agent, conflict.operation_id) == (AGENT, held.reply["id"])
    left, _ = member.told(MessageSent)
    assert left.agent == AGENT
    assert left.message == (
        f"{task.removeprefix('email_')} of e-mail {taken} is left for later:"
        f" 'quote_agent' has claimed emailId {taken} for 'quote'"
    )
    await submit(member.writer, do.FinishOperation(operation_id=held.reply["id"], outcome="succeeded"))
    assert_nothing_is_held(member)


async def test_what_failed_goes_behind_the_others_and_what_it_used_counts(
    agents: Agents, member: Member
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({"tokens_used": 9}, 500), classifies(member))
    first, *others = await emails(member, 12)
    await email_job(member, "email_classify")
    await member.carry_out("email_classify")
    assert [item.outcome for item in member.told(OperationFinished)] == ["failed", *["succeeded"] * 9]
    assert member.told(TokensSettled)[0].tokens_used == 9
    await member.carry_out("email_classify")
    assert [call.payload["email_id"] for call in agents.calls[10:]] == [*others[9:], first]
    assert not member.scheduler._failure_counts
    assert_nothing_is_held(member)


@pytest.mark.parametrize("held", [False, True], ids=["left as they are", "claimed by somebody"])
async def test_what_still_waits_afterwards_goes_behind_the_others(
    agents: Agents, member: Member, *, held: bool
) -> None:
    waiting = await emails(member, 7, classified=True)
    for email in waiting[:5] if held else ():
        claim = do.StartOperation(agent="rival", action="x", resources={"emailId": email})
        await submit(member.writer, claim)
    await email_job(member, "email_respond")
    for _ in range(2):
        assert (await member.carry_out("email_respond")).outcome == "succeeded"
    called = [call.payload["email_id"] for call in agents.calls]
    assert called == (waiting[5:] if held else [*waiting, *waiting[:3]])


async def test_where_the_budget_refuses_none_goes_behind_the_others(agents: Agents, member: Member) -> None:
    await emails(member, 1)
    await submit(member.writer, do.SetBudget(daily_tokens=100))
    await email_job(member, "email_classify")
    await member.carry_out("email_classify")
    assert not agents.calls
    assert not member.scheduler._failure_counts


async def test_of_what_is_over_nothing_is_remembered(agents: Agents, member: Member) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({}, 500))
    (email,) = await emails(member, 1)
    await email_job(member, "email_classify")
    await member.carry_out("email_classify")
    assert dict(member.scheduler._failure_counts) == {email: 1}
    await submit(member.writer, do.UpdateEmail(email_id=email, status="archived"))
    await member.carry_out("email_classify")
    assert not member.scheduler._failure_counts


async def test_of_what_is_left_nothing_stays_in_memory(agents: Agents, member: Member) -> None:
    """An exception and what holds it are a circle, in which all stays that the agent answered."""
    agents.on(CLASSIFY_ENDPOINT, answers({}, 500))
    await emails(member, 3)
    await email_job(member, "email_classify")
    gc.collect()
    gc.disable()
    try:
        await member.carry_out("email_classify")
        assert len(agents.calls) == 3
        assert not [left for left in gc.get_objects() if isinstance(left, _Skipped)]
    finally:
        gc.enable()


@pytest.mark.parametrize("status", ["classified", "archived"])
async def test_what_somebody_finished_since_it_was_chosen_is_passed_over(
    agents: Agents, member: Member, status: Literal["classified", "archived"]
) -> None:
    first, second, third = await emails(member, 3)

    async def classify_two(request: web.Request) -> web.StreamResponse:
        change = do.UpdateEmail(email_id=second, status=status, category="quote")
        await submit(member.writer, change)
        return await classifies(member)(request)

    agents.on(CLASSIFY_ENDPOINT, classify_two, classifies(member))
    await email_job(member, "email_classify")
    assert (await member.carry_out("email_classify")).outcome == "succeeded"
    assert [call.payload["email_id"] for call in agents.calls] == [first, third]
    (told,) = member.told(MessageSent)
    assert told.message == "email_classify: 2 of 3 e-mails done, 1 no longer waiting"
    assert told.data
    assert told.data["left"] == {second: "it was finished or erased meanwhile"}
    assert [item.outcome for item in member.told(OperationFinished)] == [
        "succeeded",
        "cancelled",
        "succeeded",
    ]
    assert_nothing_is_held(member)


async def test_one_that_hangs_leaves_time_for_the_others(agents: Agents, member: Member) -> None:
    agents.on(CLASSIFY_ENDPOINT, drips(), answers({}))
    await emails(member, 3)
    await email_job(member, "email_classify", timeout_seconds=1.0)
    finished = await member.carry_out("email_classify")
    assert finished.outcome == "succeeded"
    (told,) = member.told(MessageSent)
    assert told.message == "email_classify: 2 of 3 e-mails done, 1 left for later"
    assert [item.outcome for item in member.told(OperationFinished)] == ["cancelled", *["succeeded"] * 2]
    assert_nothing_is_held(member)

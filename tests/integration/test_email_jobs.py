"""E-mails polled, classified, answered: budgeted, claimed, and everything given back on every way out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from eventstore.events import (
    ConflictDetected,
    MessageSent,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    RunFinished,
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from projections.agents import AGENTS
from projections.budgets import RESERVATIONS
from projections.operations import OPERATIONS
from service import commands as do
from service.email_work import CLASSIFY_ENDPOINT, RESPOND_ENDPOINT
from service.tasks import POLL_ENDPOINT
from tests.support.agents import after, answers, answers_bytes, drips, when
from tests.support.jobs import define, running_member
from tests.support.parts import submit
from tests.support.wait import eventually

if TYPE_CHECKING:
    from service.commands import AnyCommand
    from tests.support.agents import Agents
    from tests.support.jobs import Member

AGENT = "email_agent"


async def emails(member: Member, count: int, *, classified: bool = False) -> list[str]:
    """So many e-mails that wait; gives their ids, the oldest first."""
    found = []
    for number in range(count):
        logged = do.LogEmail(
            gmail_message_id=f"gmail-{number}",
            from_email="ada@example.org",
            category="quote" if classified else "unclassified",
            status="classified" if classified else "unread",
        )
        found.append(str((await submit(member.writer, logged)).reply["id"]))
    return found


async def email_job(member: Member, task: str, timeout_seconds: float = 30.0) -> None:
    await define(member, task, task=task, agent=AGENT, timeout_seconds=timeout_seconds)


def assert_nothing_is_held(member: Member) -> None:
    squad = member.writer.squad
    assert not list(squad.all(OPERATIONS))
    assert not list(squad.all(RESERVATIONS))
    assert squad.day is not None
    assert squad.day.reserved == 0


@pytest.mark.parametrize(("answer", "used"), [({"tokens_used": 730}, 730), ({"found": 2}, 500)])
async def test_a_poll_sets_1000_aside_and_counts_as_what_is_reported_or_500(
    agents: Agents, member: Member, answer: object, used: int
) -> None:
    agents.on(POLL_ENDPOINT, answers(answer))
    await define(member, "email_poll", task="email_poll", agent=AGENT, tokens=1_000)
    await member.carry_out("email_poll")
    assert [item.tokens for item in member.told(TokensReserved)] == [1_000]
    assert [item.tokens_used for item in member.told(TokensSettled)] == [used]
    (told,) = member.told(MessageSent)
    assert (told.agent, told.message) == (AGENT, "email_poll succeeded")
    assert_nothing_is_held(member)


@pytest.mark.parametrize(
    ("task", "endpoint", "at_most", "reserved", "unreported"),
    [
        ("email_classify", CLASSIFY_ENDPOINT, 10, 500, 300),
        ("email_respond", RESPOND_ENDPOINT, 5, 800, 600),
    ],
)
async def test_so_many_of_those_that_wait_are_worked_on_the_oldest_first(
    agents: Agents,
    member: Member,
    task: str,
    endpoint: str,
    at_most: int,
    reserved: int,
    unreported: int,
) -> None:
    agents.on(endpoint, answers({"tokens_used": 111}), answers({}))
    waiting = await emails(member, at_most + 2, classified=task == "email_respond")
    await email_job(member, task)
    finished = await member.carry_out(task)
    assert finished.outcome == "succeeded"
    assert [call.payload["email_id"] for call in agents.called(endpoint)] == waiting[:at_most]
    assert [item.tokens for item in member.told(TokensReserved)] == [reserved] * at_most
    used = [item.tokens_used for item in member.told(TokensSettled)]
    assert used == [111, *[unreported] * (at_most - 1)]
    claims = member.told(OperationStarted)
    assert [claim.resources for claim in claims] == [{"emailId": id_} for id_ in waiting[:at_most]]
    assert {claim.agent for claim in claims} == {AGENT}
    assert {item.outcome for item in member.told(OperationFinished)} == {"succeeded"}
    positions = [item.position for item in member.log if item.type == "operation_started"]
    assert [call.payload["fencing_token"] for call in agents.calls] == positions
    (told,) = member.told(MessageSent)
    assert told.message == f"{task}: {at_most} of {at_most + 2} e-mails done"
    assert_nothing_is_held(member)


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
        f" 'quote_agent' is at 'quote' on emailId {taken}"
    )
    await submit(member.writer, do.FinishOperation(operation_id=held.reply["id"], outcome="succeeded"))
    assert_nothing_is_held(member)


async def test_a_claim_is_kept_during_a_slow_call(agents: Agents, member: Member) -> None:
    await submit(member.writer, do.SetPolicy(conflict_window_seconds=0.6, operation_timeout_seconds=1.2))
    agents.on(CLASSIFY_ENDPOINT, after(1.5))
    (email,) = await emails(member, 1)
    await email_job(member, "email_classify")
    run = await member.run_now("email_classify")
    await eventually(lambda: len(member.told(OperationRenewed)) >= 5)
    rival = await submit(
        member.writer, do.StartOperation(agent="rival", action="x", resources={"emailId": email})
    )
    assert rival.refusal is not None
    assert rival.refusal.code == "conflict"
    assert (await member.finished(run)).outcome == "succeeded"
    assert_nothing_is_held(member)


async def test_what_failed_goes_behind_the_others_and_what_it_used_counts(
    agents: Agents, member: Member
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({"tokens_used": 9}, 500), answers({}))
    first, *others = await emails(member, 12)
    await email_job(member, "email_classify")
    await member.carry_out("email_classify")
    assert [item.outcome for item in member.told(OperationFinished)] == ["failed", *["succeeded"] * 9]
    assert member.told(TokensSettled)[0].tokens_used == 9
    # Nobody updated any of them, so all of them still wait.
    await member.carry_out("email_classify")
    second = [call.payload["email_id"] for call in agents.calls[10:]]
    assert second == others[:10]
    assert first not in second
    assert_nothing_is_held(member)


async def test_where_all_fail_the_run_fails(agents: Agents, member: Member) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({"error": "no model"}, 500))
    await emails(member, 2)
    await email_job(member, "email_classify")
    finished = await member.carry_out("email_classify")
    assert (finished.outcome, finished.reason) == ("failed", 'the agent answered 500: {"error":"no model"}')
    assert len(member.told(TokensReleased)) == 2
    assert_nothing_is_held(member)


async def test_an_answer_that_no_text_may_hold_is_told_of_without_what_it_may_not(
    agents: Agents, member: Member
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers_bytes(b"\x1f\x8b\x08\x00\x00a", 502), answers({}))
    email, _ = await emails(member, 2)
    await email_job(member, "email_classify")
    assert (await member.carry_out("email_classify")).outcome == "succeeded"
    (told,) = member.told(MessageSent)
    assert told.data
    assert told.data["left"] == {email: "the agent answered 502: \x1f\ufffd\x08a"}


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


@pytest.mark.parametrize(
    "end", [do.StopOrchestrator(), do.RemoveJob(name="email_classify")], ids=["shut down", "removed"]
)
async def test_what_ends_on_the_way_leaves_nothing_behind(
    agents: Agents, member: Member, end: AnyCommand
) -> None:
    enough = asyncio.Event()
    agents.on(CLASSIFY_ENDPOINT, when(enough))
    await emails(member, 3)
    await email_job(member, "email_classify")
    run = await member.run_now("email_classify")
    await eventually(lambda: agents.calls)
    await submit(member.writer, end)
    enough.set()
    assert (await member.finished(run)).outcome == "succeeded"
    # Shut down, no further agent is called.
    assert len(agents.calls) == (1 if isinstance(end, do.StopOrchestrator) else 3)
    assert_nothing_is_held(member)


async def test_cancelled_by_the_next_tick_it_leaves_nothing_behind(agents: Agents, member: Member) -> None:
    never = asyncio.Event()
    agents.on(CLASSIFY_ENDPOINT, when(never), after(0.1))
    await emails(member, 1)
    await define(
        member,
        "email_classify",
        task="email_classify",
        agent=AGENT,
        every="1s",
        overlap="cancel_other",
        timeout_seconds=30,
    )
    await eventually(lambda: any(run.outcome == "succeeded" for run in member.told(RunFinished)))
    assert member.told(OperationFinished)[0].outcome == "cancelled"
    await submit(member.writer, do.RemoveJob(name="email_classify"))
    await eventually(lambda: not member.scheduler._tasks)
    assert_nothing_is_held(member)


async def test_cancelled_at_any_moment_it_leaves_nothing_behind(agents: Agents, member: Member) -> None:
    """Whatever command is under way when the run is cut short, what it took is known and given back."""
    agents.on(CLASSIFY_ENDPOINT, after(0.002))
    await emails(member, 10)
    await email_job(member, "email_classify")
    for moment in range(25):
        run = await member.run_now("email_classify")
        task = member.scheduler._runs[run]
        goal = len(member.log) + moment
        await eventually(lambda: len(member.log) >= goal or not member.scheduler._tasks)  # noqa: B023
        task.cancel()
        task.cancel()
        await eventually(lambda: not member.scheduler._tasks)
        assert_nothing_is_held(member)
        end = do.EndAttempt(run_id=run, runner="one", attempt=1, succeeded=False, report="cut short")
        await submit(member.writer, end)
    assert member.told(OperationFinished)


async def test_stopped_on_the_way_it_leaves_nothing_behind(
    agents: Agents, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduler.STOP_SECONDS", 0.1)
    never = asyncio.Event()
    agents.on(RESPOND_ENDPOINT, when(never))
    await emails(member, 2, classified=True)
    await email_job(member, "email_respond")
    run = await member.run_now("email_respond")
    await eventually(lambda: agents.calls)
    await member.scheduler.stop()
    finished = await member.finished(run)
    assert (finished.outcome, finished.reason) == ("failed", "the service was stopped")
    assert_nothing_is_held(member)


async def test_what_was_spent_counts_also_where_the_reservation_is_over(
    agents: Agents, member: Member
) -> None:
    agents.on(CLASSIFY_ENDPOINT, after(0.5, answers({"tokens_used": 77})))
    await emails(member, 1)
    await email_job(member, "email_classify")
    run = await member.run_now("email_classify")
    (reserved,) = await eventually(lambda: member.told(TokensReserved))
    await submit(member.writer, do.ReleaseReservation(reservation_id=reserved.reservation_id))
    await member.finished(run)
    (used,) = member.told(TokensUsed)
    assert (used.agent, used.tokens) == (AGENT, 77)


@pytest.mark.parametrize(
    ("count", "status", "answered"), [(0, 200, False), (1, 200, True), (1, 500, False)]
)
async def test_only_where_the_agent_did_something_is_the_run_a_sign_of_its_life(
    agents: Agents, member: Member, count: int, status: int, *, answered: bool
) -> None:
    agents.on(CLASSIFY_ENDPOINT, answers({}, status))
    await emails(member, count)
    await email_job(member, "email_classify")
    before = member.writer.squad.rows(AGENTS).get(AGENT)
    finished = await member.carry_out("email_classify")
    assert finished.answered is answered
    after_it = member.writer.squad.rows(AGENTS).get(AGENT)
    assert before
    assert after_it
    assert (after_it.last_active > before.last_active) is answered

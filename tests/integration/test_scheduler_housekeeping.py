"""The orchestrator's own tasks: each does what the seed says, and tells the squad in a message."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from eventstore.events import BudgetThresholdCrossed, MessageSent, OperationExpired
from service import commands as do
from tests.support.jobs import define
from tests.support.parts import submit
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.jobs import Member


async def told_by(member: Member, task: str) -> MessageSent:
    """What the squad is told when the task has been done."""
    await define(member, task, agent=None, task=task)
    finished = await member.carry_out(task)
    assert finished.outcome == "succeeded"
    told = member.told(MessageSent)[-1]
    assert (told.agent, told.to_agent) == ("orchestrator", "orchestrator")
    assert told.data is not None
    assert (told.data["job"], told.data["run_id"]) == (task, finished.run_id)
    return told


async def test_status_update_counts_agents_by_status(member: Member) -> None:
    for agent, status in (("ada", "active"), ("bob", "idle"), ("eve", "offline")):
        await submit(member.writer, do.RegisterAgent(name=agent, role="test"))
        await submit(member.writer, do.Heartbeat.model_validate({"agent": agent, "status": status}))
    told = await told_by(member, "status_update")
    assert told.message == "Agents: 1 active, 1 idle, 1 offline"


async def test_status_update_notices_who_has_gone_quiet(member: Member) -> None:
    await submit(member.writer, do.Heartbeat.model_validate({"agent": "ada", "status": "active"}))
    await submit(member.writer, do.RegisterAgent(name="ada", role="test"))
    await submit(member.writer, do.SendMessage(from_agent="ada", message="hello"))
    quiet = do.SetPolicy(idle_after_minutes=0.2 / 60, offline_after_minutes=10)
    await submit(member.writer, quiet)
    spoke = member.log[-1].recorded_at
    await define(member, "status_update", agent=None, task="status_update")
    await eventually(lambda: member.scheduler._clock.now() > spoke + timedelta(seconds=0.3))
    await member.carry_out("status_update")
    told = member.told(MessageSent)[-1]
    assert told.message == "Agents: 0 active, 1 idle, 0 offline"


async def test_conflict_check_expires_stale_operations_and_lists_the_others(member: Member) -> None:
    short = do.StartOperation(agent="ada", action="reply", resources={"emailId": "e-1"}, ttl_seconds=0.1)
    await submit(member.writer, short)
    long = do.StartOperation(agent="bob", action="quote", resources={"customerId": "c-7"})
    held = await submit(member.writer, long)
    expires = member.log[-1].recorded_at + timedelta(seconds=0.3)
    await eventually(lambda: member.scheduler._clock.now() > expires)
    told = await told_by(member, "conflict_check")
    assert told.message == "Active operations: 1"
    assert told.data is not None
    assert told.data["operations"] == [
        {"id": held.reply["id"], "agent": "bob", "action": "quote", "resources": {"customerId": "c-7"}}
    ]
    assert [item.agent for item in member.told(OperationExpired)] == ["ada"]


async def test_token_monitor_says_how_much_is_used_and_what_was_passed(member: Member) -> None:
    await submit(member.writer, do.SetBudget(daily_tokens=1_000))
    day = member.writer.squad.day
    assert day is not None
    await submit(member.writer, do.RecordUsage(agent="ada", tokens=400))
    told = await told_by(member, "token_monitor")
    assert told.message == f"Token use is within bounds: 400 of 1000 tokens (40%) used on {day.day}"
    await submit(member.writer, do.RecordUsage(agent="ada", tokens=400))
    again = await member.carry_out("token_monitor")
    told = member.told(MessageSent)[-1]
    assert told.message == f"Token use has passed 75%: 800 of 1000 tokens (80%) used on {day.day}"
    assert [item.percent for item in member.told(BudgetThresholdCrossed)] == [50, 75]
    assert again.outcome == "succeeded"


async def test_token_reset_tells_where_the_budget_day_stands(member: Member) -> None:
    day = member.writer.squad.day
    assert day is not None
    told = await told_by(member, "token_reset")
    assert told.message == f"Budget day {day.day}: 0 of 1000000 tokens used, until {day.ends_at}"

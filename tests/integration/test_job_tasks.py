"""The built-in housekeeping tasks: each does what the seed specifies, and reports it in a message."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from eventstore.events import BudgetThresholdCrossed, MessageSent, OperationExpired
from service import commands as do
from tests.support.components import submit
from tests.support.jobs import define
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.jobs import JobProcess


async def message_from(job_process: JobProcess, task: str) -> MessageSent:
    """Run a task; return the message that reports on it."""
    await define(job_process, task, agent=None, task=task)
    finished = await job_process.carry_out(task)
    assert finished.outcome == "succeeded"
    sent = job_process.find_events(MessageSent)[-1]
    assert (sent.agent, sent.to_agent) == ("orchestrator", "orchestrator")
    assert sent.data is not None
    assert (sent.data["job"], sent.data["run_id"]) == (task, finished.run_id)
    return sent


async def test_status_update_counts_agents_by_status(job_process: JobProcess) -> None:
    for agent, status in (("ada", "active"), ("bob", "idle"), ("eve", "offline")):
        await submit(job_process.writer, do.RegisterAgent(name=agent, role="test"))
        await submit(job_process.writer, do.Heartbeat.model_validate({"agent": agent, "status": status}))
    sent = await message_from(job_process, "status_update")
    assert sent.message == "Agents: 1 active, 1 idle, 1 offline"


async def test_status_update_marks_a_quiet_agent_as_idle(job_process: JobProcess) -> None:
    await submit(job_process.writer, do.Heartbeat.model_validate({"agent": "ada", "status": "active"}))
    await submit(job_process.writer, do.RegisterAgent(name="ada", role="test"))
    await submit(job_process.writer, do.SendMessage(from_agent="ada", message="hello"))
    quiet = do.SetPolicy(idle_after_minutes=0.2 / 60, offline_after_minutes=10)
    await submit(job_process.writer, quiet)
    spoke = job_process.log[-1].recorded_at
    await define(job_process, "status_update", agent=None, task="status_update")
    await eventually(lambda: job_process.scheduler._clock.now() > spoke + timedelta(seconds=0.3))
    await job_process.carry_out("status_update")
    sent = job_process.find_events(MessageSent)[-1]
    assert sent.message == "Agents: 0 active, 1 idle, 0 offline"


async def test_conflict_check_expires_stale_operations_and_lists_the_others(
    job_process: JobProcess,
) -> None:
    short = do.StartOperation(agent="ada", action="reply", resources={"emailId": "e-1"}, ttl_seconds=0.1)
    await submit(job_process.writer, short)
    long = do.StartOperation(agent="bob", action="quote", resources={"customerId": "c-7"})
    held = await submit(job_process.writer, long)
    expires = job_process.log[-1].recorded_at + timedelta(seconds=0.3)
    await eventually(lambda: job_process.scheduler._clock.now() > expires)
    sent = await message_from(job_process, "conflict_check")
    assert sent.message == "Active operations: 1"
    assert sent.data is not None
    assert sent.data["operations"] == [
        {"id": held.reply["id"], "agent": "bob", "action": "quote", "resources": {"customerId": "c-7"}}
    ]
    assert [item.agent for item in job_process.find_events(OperationExpired)] == ["ada"]


async def test_token_monitor_reports_usage_and_the_threshold_passed(job_process: JobProcess) -> None:
    await submit(job_process.writer, do.SetBudget(daily_tokens=1_000))
    day = job_process.writer.squad.day
    assert day is not None
    await submit(job_process.writer, do.RecordUsage(agent="ada", tokens=400))
    sent = await message_from(job_process, "token_monitor")
    assert sent.message == f"Token use is within bounds: 400 of 1000 tokens (40%) used on {day.day}"
    await submit(job_process.writer, do.RecordUsage(agent="ada", tokens=400))
    again = await job_process.carry_out("token_monitor")
    sent = job_process.find_events(MessageSent)[-1]
    assert sent.message == f"Token use has passed 75%: 800 of 1000 tokens (80%) used on {day.day}"
    assert [item.percent for item in job_process.find_events(BudgetThresholdCrossed)] == [50, 75]
    assert again.outcome == "succeeded"


async def test_token_reset_reports_the_usage_and_the_end_of_the_budget_day(job_process: JobProcess) -> None:
    day = job_process.writer.squad.day
    assert day is not None
    sent = await message_from(job_process, "token_reset")
    assert sent.message == f"Budget day {day.day}: 0 of 1000000 tokens used, until {day.ends_at}"

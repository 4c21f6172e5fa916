"""One process that runs jobs: what agents receive, what the outcomes are, and what is recorded."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from msgspec import structs

from eventstore.events import (
    AgentStatusChanged,
    MessageSent,
    RunAttemptFailed,
    RunFinished,
    RunRetried,
    RunSkipped,
    RunStarted,
    TokensReleased,
    TokensReserved,
    TokensSettled,
)
from projections.jobs import JOBS
from projections.runs import RUNS, run_id
from service import commands as do
from service.decide.jobs import due_jobs
from service.job_spec import JobSpec
from service.requests import Request
from service.scheduling import job_tasks, scheduler
from tests.support.agents import after, answers, answers_bytes, drips, is_signed, when
from tests.support.components import submit
from tests.support.jobs import define, running_job_process
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from service.memory.squad import Squad
    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def test_tick_calls_the_agent_with_the_details_of_its_run(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on("/poll", answers({"tokens_used": 40, "found": 3}))
    await define(job_process, "poll", every="1s", tokens=100)
    (started,) = await eventually(lambda: job_process.find_events(RunStarted)[:1])
    finished = await job_process.wait_for_run(started.run_id)
    tick = started.tick
    assert started.run_id == run_id("poll", tick)
    assert tick.microsecond == 0
    position = next(item.position for item in job_process.log if item.type == "run_started")
    assert agents.calls[0].payload == {
        "run_id": started.run_id,
        "job": "poll",
        "tick": tick.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "attempt": 1,
        "fencing_token": position,
    }
    assert agents.calls[0].headers["webhook-id"] == started.run_id
    assert (finished.outcome, finished.attempts, finished.tokens_used) == ("succeeded", 1, 40)


async def test_calls_are_signed_when_the_agent_has_a_secret(agents: Agents, database: str) -> None:
    async with running_job_process(database, agents.url, worker=SECRET) as job_process:
        await define(job_process, "poll")
        await job_process.carry_out("poll")
    assert is_signed(agents.calls[0], SECRET)


@pytest.mark.parametrize(
    ("answer", "used"), [({"usage": {"input_tokens": 30, "output_tokens": 12}}, 42), ({}, 100)]
)
async def test_tokens_are_reserved_and_settled_as_reported_or_estimated(
    agents: Agents, job_process: JobProcess, answer: object, used: int
) -> None:
    agents.on("/poll", answers(answer))
    await define(job_process, "poll", tokens=100)
    await job_process.carry_out("poll")
    (reserved,) = job_process.find_events(TokensReserved)
    (settled,) = job_process.find_events(TokensSettled, reservation_id=reserved.reservation_id)
    assert (settled.agent, settled.tokens_reserved, settled.tokens_used) == ("worker", 100, used)


async def test_agent_is_active_while_called_and_idle_afterwards(
    agents: Agents, job_process: JobProcess
) -> None:
    await define(job_process, "poll")
    await job_process.carry_out("poll")
    changes = [change.status for change in job_process.find_events(AgentStatusChanged, agent="worker")]
    assert changes == ["active", "idle"]


async def test_agent_whose_calls_all_fail_goes_offline(agents: Agents, job_process: JobProcess) -> None:
    """It was last heard of when it was registered: the runs that follow are not signs of life."""
    await submit(job_process.writer, do.SetPolicy(idle_after_minutes=0.01, offline_after_minutes=0.03))
    agents.on("/poll", answers({}, 500))
    await define(job_process, "poll", every="100ms", tokens=5, resources={"mailbox": "info"})

    def statuses_after_runs() -> list[str]:
        return [item.status for item in job_process.find_events(AgentStatusChanged, reason="run_ended")]

    await eventually(lambda: len(job_process.find_events(RunFinished)) >= 30)
    statuses = statuses_after_runs()
    assert statuses == sorted(statuses), "an agent that is offline stays offline"
    assert statuses[-1] == "offline"
    agents.on("/poll", answers({}))
    await eventually(lambda: statuses_after_runs()[-1] == "idle")


async def test_failed_attempt_is_retried_after_a_backoff(agents: Agents, job_process: JobProcess) -> None:
    agents.on("/poll", answers({}, 503), answers({"tokens_used": 5}))
    await define(job_process, "poll", retries=2, tokens=100)
    finished = await job_process.carry_out("poll")
    assert (finished.outcome, finished.attempts, finished.tokens_used) == ("succeeded", 2, 5)
    (failed,) = job_process.find_events(RunAttemptFailed)
    assert failed.attempt == 1
    assert failed.reason == "the agent answered 503: {}"
    first, second = agents.calls
    assert (first.payload["attempt"], second.payload["attempt"]) == (1, 2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    at = {item.type: item.recorded_at for item in job_process.log}
    assert 0.5 <= (failed.retry_at - at["run_attempt_failed"]).total_seconds() <= 1
    assert failed.retry_at <= at["run_retried"]


async def test_last_failure_ends_the_run_sends_a_message_and_pauses_the_job(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on("/poll", answers({"error": "no mailbox"}, 500))
    await define(job_process, "poll", retries=1, tokens=100, pause_on_failure=True)
    finished = await job_process.carry_out("poll")
    assert (finished.outcome, finished.attempts) == ("failed", 2)
    assert finished.reason == 'the agent answered 500: {"error":"no mailbox"}'
    assert len(job_process.find_events(TokensReleased)) == 1
    (sent,) = job_process.find_events(MessageSent)
    assert sent.message == f"poll failed: {finished.reason} (attempt 2 of 2)"
    job = job_process.writer.squad.rows(JOBS).get("poll")
    assert job is not None
    assert job.paused


async def test_endless_answer_fails_at_the_timeout(agents: Agents, job_process: JobProcess) -> None:
    agents.on("/poll", drips())
    await define(job_process, "poll", timeout_seconds=0.3)
    finished = await job_process.carry_out("poll")
    assert (finished.outcome, finished.reason) == ("failed", "it took longer than 0.3 seconds")
    await eventually(lambda: not agents.in_flight["/poll"])


ANSWERS: list[tuple[bytes, object]] = [  # the body, and what is stored of it
    (b'{"found": 3}', {"found": 3}),
    (b"not JSON", "not JSON"),
    (b"", None),
    (b'{"text": "\\u0000"}', "an answer that cannot be stored"),
    (b'{"n": 123456789012345678901234567890}', "an answer that cannot be stored"),
    (b"[" * 64 + b"]" * 64, "an answer that cannot be stored"),
    (
        b'"' + b"x" * job_tasks.MAX_STORED_BYTES + b'"',
        f"an answer of {job_tasks.MAX_STORED_BYTES + 2} bytes",
    ),
]


async def test_answer_that_the_log_cannot_store_is_replaced_by_a_placeholder(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on("/poll", *(answers_bytes(body) for body, _ in ANSWERS))
    await define(job_process, "poll")
    for _, stored in ANSWERS:
        finished = await job_process.carry_out("poll")
        assert finished.outcome == "succeeded"
        sent = job_process.find_events(MessageSent)[-1]
        assert sent.agent == "worker"
        run = {"job": "poll", "run_id": finished.run_id, "status": "succeeded"}
        assert sent.data == {"result": stored, **run}


async def test_failure_reason_omits_what_the_log_cannot_store(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on("/poll", answers_bytes(b"a\x00b \xed\xa0\x80", 500))
    await define(job_process, "poll")
    finished = await job_process.carry_out("poll")
    assert finished.outcome == "failed"
    assert "the agent answered 500: ab" in (finished.reason or "")


async def test_internal_error_ends_the_run_at_once(
    agents: Agents, job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(scheduler, "perform", broken)
    await define(job_process, "poll")
    finished = await job_process.carry_out("poll")
    assert (finished.outcome, finished.reason) == (
        "failed",
        "an internal error of the orchestrator: KeyError: 'oops'",
    )


async def test_scheduler_continues_after_an_error_in_finding_due_jobs(
    job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = 0

    def fail_at_first(state: Squad, now: datetime, *args: Any) -> object:
        nonlocal lookups
        lookups += 1
        if lookups == 1:
            raise ValueError("a malformed job")
        return due_jobs(state, now, *args)

    monkeypatch.setattr(scheduler, "due_jobs", fail_at_first)
    await define(job_process, "poll", every="1s")
    await eventually(lambda: lookups > 1 and job_process.find_events(RunFinished))


async def test_job_in_an_unknown_time_zone_is_logged_once_and_delays_no_other_job(
    job_process: JobProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = 0

    def counting(*args: Any) -> object:
        nonlocal lookups
        lookups += 1
        return due_jobs(*args)

    known = JobSpec(task="token_monitor", cron="* * * * *").definition()
    strange = structs.replace(known, timezone="Mars/Olympus")
    await submit(job_process.writer, do.DefineJob(name="strange", source="api", definition=strange))
    monkeypatch.setattr(scheduler, "due_jobs", counting)
    await define(job_process, "quick", agent=None, task="token_monitor", every="100ms")
    await eventually(lambda: lookups > 10 and len(job_process.find_events(RunFinished, job="quick")) > 2)
    logged = [record.getMessage() for record in caplog.records if "strange" in record.getMessage()]
    assert logged == ["the job strange cannot be scheduled: the time zone 'Mars/Olympus' is not known here"]


class Claims:
    """Holds back a scheduler's claims until they may proceed, and counts them."""

    def __init__(self, job_process: JobProcess) -> None:
        self.started = 0
        self.may_proceed = asyncio.Event()
        job_process.call_before(do.ClaimTick, self._wait)

    async def _wait(self) -> None:
        self.started += 1
        await self.may_proceed.wait()


async def _define_due_jobs(job_process: JobProcess, number: int) -> set[str]:
    """Define this many jobs, none of which is claimed before all are due; return their names."""
    names = {f"job-{index}" for index in range(number)}
    async with job_process.scheduler._claiming:
        for name in names:
            await define(job_process, name, agent=None, task="token_monitor", every="1s")
        await eventually(
            lambda: set(due_jobs(job_process.writer.squad, job_process.scheduler._clock.now())[0]) == names
        )
    return names


async def test_claims_queued_before_other_commands_are_limited(
    job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_CLAIMS", 3)
    claims = Claims(job_process)
    names = await _define_due_jobs(job_process, 10)
    await eventually(lambda: claims.started)
    # Any further claim would have reached the writer before this command.
    await submit(job_process.writer, do.SetBudget(daily_tokens=1_000))
    assert claims.started == 3
    claims.may_proceed.set()
    await eventually(lambda: {item.job for item in job_process.find_events(RunStarted)} == names)


async def test_stopping_scheduler_makes_no_further_claims(
    job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_CLAIMS", 1)
    claims = Claims(job_process)
    await _define_due_jobs(job_process, 3)
    await eventually(lambda: claims.started)
    stopping = asyncio.create_task(job_process.scheduler.stop())
    await eventually(lambda: job_process.scheduler._stopping)
    claims.may_proceed.set()
    await stopping
    assert claims.started == 1


async def test_concurrent_calls_to_one_agent_are_limited(
    agents: Agents, job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_RUNS_PER_AGENT", 2)
    may_answer = asyncio.Event()
    agents.on("/slow", when(may_answer))
    await define(job_process, "slow", overlap="allow_all")
    runs = [await job_process.run_now("slow") for _ in range(5)]
    await eventually(lambda: agents.in_flight["/slow"] == 2)
    # Other agents are called meanwhile.
    await define(job_process, "quick", agent="another")
    assert (await job_process.carry_out("quick")).outcome == "succeeded"
    may_answer.set()
    for run in runs:
        assert (await job_process.wait_for_run(run)).outcome == "succeeded"
    assert agents.max_in_flight["/slow"] == 2


async def test_concurrent_calls_to_all_agents_together_are_limited(
    agents: Agents, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_RUNS", 3)
    async with running_job_process(database, agents.url) as job_process:
        for number in range(6):
            agents.on(f"/job-{number}", after(0.1))
            await define(job_process, f"job-{number}", agent=f"worker-{number}")
        runs = [await job_process.run_now(f"job-{number}") for number in range(6)]
        for run in runs:
            assert (await job_process.wait_for_run(run)).outcome == "succeeded"
    assert agents.max_in_flight[""] == 3


async def test_run_fails_when_its_jobs_agent_is_changed_between_attempts(
    agents: Agents, job_process: JobProcess
) -> None:
    """The tokens, the claim and the status belong to the first agent, so the run calls no other."""
    agents.on("/poll", answers({}, 500))
    await define(job_process, "poll", retries=5, tokens=100, resources={"mailbox": "info"})
    run = await job_process.run_now("poll")
    await eventually(lambda: job_process.find_events(RunAttemptFailed))
    await define(job_process, "poll", agent="another", retries=5, tokens=100, resources={"mailbox": "info"})
    finished = await job_process.wait_for_run(run)
    assert (finished.agent, finished.outcome) == ("worker", "failed")
    assert finished.reason == "the job's agent was changed before attempt 2 of 6"
    assert len(agents.calls) == 1
    agents.on("/poll", answers({"tokens_used": 7}))
    assert (await job_process.carry_out("poll")).agent == "another"
    assert [(item.agent, item.tokens_used) for item in job_process.find_events(TokensSettled)] == [
        ("another", 7)
    ]


async def test_run_fails_when_its_jobs_agent_is_changed_as_it_starts(
    agents: Agents, job_process: JobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await define(job_process, "poll")
    await define(job_process, "other", agent="another")
    changed = JobSpec(agent="another", endpoint="/poll", cron="0 0 1 1 *").definition()
    # In one batch: the run has started according to the log, but has not called the agent yet.
    monkeypatch.setattr(job_process.writer._appender.batch_sizer, "initial_size", lambda waiting: waiting)
    outcomes = job_process.writer.put_all(
        Request(command, "agent:test", "test")
        for command in (
            do.RunJob(name="poll", runner=job_process.scheduler.runner),
            do.DefineJob(name="poll", source="api", definition=changed),
        )
    )
    started, _ = await asyncio.gather(*outcomes)
    finished = await job_process.wait_for_run(started.reply["id"])
    assert (finished.agent, finished.reason) == ("worker", "the job's agent was changed")
    assert not agents.calls


async def test_no_job_fires_and_no_attempt_is_retried_while_shut_down(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on("/poll", answers({}, 500))
    await define(job_process, "tick", every="1s")
    await define(job_process, "poll", retries=5)
    run = await job_process.run_now("poll")
    await eventually(lambda: job_process.find_events(RunAttemptFailed))
    await submit(job_process.writer, do.StopOrchestrator())
    finished = await job_process.wait_for_run(run)
    assert finished.outcome == "failed"
    assert finished.reason == "the orchestrator was shut down before attempt 2 of 6"
    (skipped, *_) = await eventually(lambda: job_process.find_events(RunSkipped, job="tick"))
    assert (skipped.reason, skipped.detail) == ("shut_down", "the orchestrator is shut down")
    refused = await submit(job_process.writer, do.RunJob(name="poll", runner=job_process.scheduler.runner))
    assert refused.refusal is not None
    assert refused.refusal.code == "orchestrator_stopped"
    before = len(agents.calls)
    await submit(job_process.writer, do.StartOrchestrator())
    await eventually(lambda: len(agents.calls) > before, describe="the job fires again")


async def test_paused_job_skips_its_ticks_and_records_why(agents: Agents, job_process: JobProcess) -> None:
    await define(job_process, "poll", every="1s")
    await submit(job_process.writer, do.PauseJob(name="poll", note="the mailbox moves"))
    (skipped, *_) = await eventually(lambda: job_process.find_events(RunSkipped))
    assert (skipped.reason, skipped.detail) == ("paused", "the mailbox moves")
    assert not agents.calls
    await submit(job_process.writer, do.ResumeJob(name="poll"))
    await eventually(lambda: job_process.find_events(RunFinished))


async def test_removed_job_can_be_defined_again(
    agents: Agents, job_process: JobProcess, database: str
) -> None:
    for _ in range(2):
        await define(job_process, "poll")
        assert (await job_process.carry_out("poll")).outcome == "succeeded"
        await submit(job_process.writer, do.RemoveJob(name="poll"))
    # Also immediately, in one batch with its last tick.
    await define(job_process, "poll")
    await asyncio.gather(
        submit(job_process.writer, do.RemoveJob(name="poll")),
        submit(job_process.writer, do.ClaimTick(name="poll", runner="one")),
        submit(job_process.writer, do.PauseJob(name="poll")),
        define(job_process, "poll"),
    )
    assert (await job_process.carry_out("poll")).outcome == "succeeded"
    await assert_log_is_sound(database)


async def test_run_of_a_removed_job_is_not_retried(agents: Agents, job_process: JobProcess) -> None:
    agents.on("/poll", answers({}, 500))
    await define(job_process, "poll", retries=5)
    run = await job_process.run_now("poll")
    await eventually(lambda: job_process.find_events(RunAttemptFailed))
    await submit(job_process.writer, do.RemoveJob(name="poll"))
    finished = await job_process.wait_for_run(run)
    assert finished.reason == "the job was removed before attempt 2 of 6"
    assert not job_process.find_events(RunRetried)


async def test_every_step_of_a_run_is_in_the_log_with_its_actor(
    agents: Agents, job_process: JobProcess
) -> None:
    agents.on("/poll", answers({}, 500), answers({}))
    await define(job_process, "poll", retries=1)
    run = await job_process.run_now("poll")
    await job_process.wait_for_run(run)
    steps = [(item.type, item.actor) for item in job_process.log if item.stream == f"run-{run}"]
    assert steps == [
        ("run_started", "agent:test"),
        ("run_attempt_failed", "system:scheduler"),
        ("run_retried", "system:scheduler"),
        ("run_finished", "system:scheduler"),
    ]
    by_position = {item.position: item for item in job_process.log}
    for item in job_process.log:
        if item.stream == f"run-{run}" and item.caused_by:
            assert orjson.loads(by_position[item.caused_by].data)["job"] == "poll"
    assert job_process.writer.squad.rows(RUNS).get(run) is None
    assert job_process.log[-1].recorded_at <= datetime.now(UTC)

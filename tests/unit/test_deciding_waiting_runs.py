"""Runs started by hand that wait for a process: the first one to take a run up in time gets it."""

from __future__ import annotations

from typing import Any

import pytest

from eventstore.events import (
    AgentStatusChanged,
    DenialReason,
    JobPaused,
    MessageSent,
    RunFinished,
    RunRetried,
    RunStarted,
    TokensReserved,
)
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS, RESERVATIONS
from projections.jobs import JOBS
from projections.runs import RUNS, RunRow
from service.commands import RemoveJob, RunJob, SetPolicy, StopOrchestrator
from service.decide.jobs import due_jobs
from service.decide.runs import LEASE_SECONDS, is_free
from tests.unit.job_stories import JOB, OTHER, RUNNER, claim, end_attempt, take_up, with_job
from tests.unit.stories import FRESH, START, Story, moment

RUN_NOW = RunJob(name=JOB)


def requested(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """A squad in which a run was requested at 30 s, and no process has taken it up yet."""
    return with_job(policy, **fields).given(RUN_NOW, at=30)


def run(story: Story) -> RunRow:
    [row] = story.squad.all(RUNS)
    return row


class TestRequest:
    def test_requested_run_is_recorded_and_free_for_any_process(self) -> None:
        story = with_job().when(RUN_NOW, at=30)
        assert story.events[-1] == RunStarted(
            run_id=FRESH,
            job=JOB,
            agent="ann",
            tick=moment(30),
            manual=True,
            runner=None,
            attempts_allowed=1,
            lease_expires_at=None,
            reservation_id=None,
            operation_id=None,
        )
        story.then_replied(job=JOB, tick=moment(30), status="running", attempts=0, started_at=None)
        row = run(story)
        assert (row.status, row.attempts, row.runner, row.started_at) == ("running", 0, None, None)
        assert row.retry_at == moment(30)
        assert is_free(row, moment(30))
        assert story.row(JOBS, JOB).ticked_until == START

    def test_requested_run_is_due_at_once(self) -> None:
        story = requested()
        assert due_jobs(story.squad, story.now) == ([], [run(story).id], moment(60))

    @pytest.mark.parametrize(
        ("policy", "code"),
        [
            (SetPolicy(daily_tokens=599), "budget_exhausted"),
            (SetPolicy(agent_limits={"ann": 100}), "agent_limit_reached"),
        ],
    )
    def test_request_beyond_the_budget_is_refused(self, policy: SetPolicy, code: DenialReason) -> None:
        story = with_job(policy, tokens=600).when(RUN_NOW, at=1)
        assert story.refusal.code == code

    def test_reservation_lasts_as_long_as_the_run_may_wait_and_take(self) -> None:
        """The run may wait 60 s; an attempt may take 30 s, its lease 15 s, and the margin is 600 s."""
        story = with_job(tokens=600).when(RUN_NOW, at=30)
        [reserved] = [event for event in story.events if isinstance(event, TokensReserved)]
        assert reserved.expires_at == moment(30 + 60 + 645)
        assert run(story).reservation_id in {row.id for row in story.squad.all(RESERVATIONS)}

    def test_request_is_refused_while_another_run_waits(self) -> None:
        requested().when(RUN_NOW, at=31).then_refused("job_running")

    def test_request_during_a_shutdown_is_refused(self) -> None:
        with_job().given(StopOrchestrator()).when(RUN_NOW, at=1).then_refused("orchestrator_stopped")

    def test_tick_is_skipped_while_a_requested_run_waits(self) -> None:
        story = requested().when(claim(), at=60)
        assert [item.type for item in story.recorded] == ["run_skipped"]


class TestTakingUp:
    def test_taking_up_starts_the_first_attempt(self) -> None:
        story = requested()
        id_ = run(story).id
        story.when(take_up(id_), at=31).then(
            RunRetried(
                run_id=id_,
                job=JOB,
                attempt=1,
                runner=OTHER,
                lease_expires_at=moment(31 + LEASE_SECONDS),
                lease_ran_out=False,
                operation_id=None,
            )
        )
        row = run(story)
        assert (row.attempts, row.runner, row.started_at, row.retry_at) == (1, OTHER, moment(31), None)

    def test_first_process_to_take_the_run_up_gets_it(self) -> None:
        story = requested()
        id_ = run(story).id
        story.when(take_up(id_, RUNNER), take_up(id_, OTHER), at=31)
        assert [item.type for item in story.recorded] == ["run_retried"]
        assert run(story).runner == RUNNER

    def test_requested_run_ends_like_any_other(self) -> None:
        story = requested(tokens=600)
        id_ = run(story).id
        story.given(take_up(id_, RUNNER), at=31).when(end_attempt(id_, tokens_used=5), at=32)
        assert story.reply == {"status": "succeeded"}
        assert not list(story.squad.all(RUNS))
        assert story.row(BUDGET_DAYS, START.date()).reserved == 0

    def test_requested_run_has_as_many_attempts_as_the_job_allows(self) -> None:
        story = requested(retries=1)
        id_ = run(story).id
        story.given(take_up(id_, RUNNER), at=31)
        story.when(end_attempt(id_, succeeded=False), at=32).then_replied(status="running")
        story.given(take_up(id_, RUNNER), at=35)
        story.when(end_attempt(id_, succeeded=False, attempt=2), at=36).then_replied(status="failed")

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            (RemoveJob(name=JOB), "the job was removed before attempt 1 of 1"),
            (StopOrchestrator(), "the orchestrator was shut down before attempt 1 of 1"),
        ],
    )
    def test_requested_run_fails_when_its_job_may_no_longer_run(self, command: Any, reason: str) -> None:
        story = requested().given(command, at=31)
        story.when(take_up(run(story).id), at=32)
        [finished] = [event for event in story.events if isinstance(event, RunFinished)]
        assert (finished.outcome, finished.reason, finished.attempts) == ("failed", reason, 0)


class TestCatchUpTime:
    def test_run_can_be_taken_up_until_the_end_of_the_catch_up_time(self) -> None:
        story = requested(catch_up_seconds=90.0)
        story.when(take_up(run(story).id), at=120)
        assert [item.type for item in story.recorded] == ["run_retried"]

    def test_run_is_missed_after_the_catch_up_time(self) -> None:
        story = requested(tokens=600, catch_up_seconds=90.0, pause_on_failure=True)
        id_ = run(story).id
        story.when(take_up(id_), at=120.000001)
        reason = "no process took it up within 90 seconds"
        assert story.events[-3:] == [
            RunFinished(
                run_id=id_,
                job=JOB,
                agent="ann",
                outcome="missed",
                attempts=0,
                reason=reason,
                tokens_used=None,
                answered=False,
            ),
            MessageSent(
                message_id=FRESH,
                agent="orchestrator",
                to_agent="orchestrator",
                message=f"poll was missed: {reason}",
                task_id=None,
                data={"job": JOB, "run_id": id_, "status": "missed"},
            ),
            AgentStatusChanged(agent="ann", previous="active", status="idle", reason="run_ended"),
        ]
        assert not list(story.squad.all(RUNS))
        assert story.row(BUDGET_DAYS, START.date()).reserved == 0
        assert story.row(AGENTS, "ann").operations == 0
        assert not any(isinstance(event, JobPaused) for event in story.events)

    def test_missed_run_does_not_block_the_tick_that_is_claimed_after_it(self) -> None:
        """After an outage, a process takes up runs first and then claims ticks."""
        story = requested()
        story.when(take_up(run(story).id), claim(), at=121)
        kinds = [item.type for item in story.recorded]
        assert "run_skipped" not in kinds
        assert kinds[-1] == "run_started"

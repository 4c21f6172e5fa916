"""Runs that somebody asked for and that no process holds yet: whoever is first takes them up, in time."""

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
from tests.unit.job_stories import JOB, OTHER, RUNNER, claim, ended, take_up, with_job
from tests.unit.support import FRESH, START, Story, moment

RUN_NOW = RunJob(name=JOB)


def asked_for(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """A squad in which somebody asked for a run half a minute after the start."""
    return with_job(policy, **fields).given(RUN_NOW, at=30)


def run(story: Story) -> RunRow:
    [row] = story.squad.all(RUNS)
    return row


class TestAskingForARun:
    def test_enters_it_for_whichever_process_is_first(self) -> None:
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
        story.replied(job=JOB, tick=moment(30), status="running", attempts=0, started_at=None)
        row = run(story)
        assert (row.status, row.attempts, row.runner, row.started_at) == ("running", 0, None, None)
        assert row.retry_at == moment(30)
        assert is_free(row, moment(30))
        assert story.row(JOBS, JOB).ticked_until == START

    def test_is_something_to_be_taken_up_at_once(self) -> None:
        story = asked_for()
        assert due_jobs(story.squad, story.now) == ([], [run(story).id], moment(60))

    @pytest.mark.parametrize(
        ("policy", "code"),
        [
            (SetPolicy(daily_tokens=599), "budget_exhausted"),
            (SetPolicy(agent_limits={"ann": 100}), "agent_limit_reached"),
        ],
    )
    def test_beyond_the_budget_is_refused(self, policy: SetPolicy, code: DenialReason) -> None:
        story = with_job(policy, tokens=600).when(RUN_NOW, at=1)
        assert story.refusal.code == code

    def test_reserves_its_tokens_for_as_long_as_it_may_wait_and_run(self) -> None:
        """It may wait 60 s; an attempt may take 30 s, its lease 15 s, and there are 600 s to spare."""
        story = with_job(tokens=600).when(RUN_NOW, at=30)
        [reserved] = [event for event in story.events if isinstance(event, TokensReserved)]
        assert reserved.expires_at == moment(30 + 60 + 645)
        assert run(story).reservation_id in {row.id for row in story.squad.all(RESERVATIONS)}

    def test_beside_itself_is_refused(self) -> None:
        asked_for().when(RUN_NOW, at=31).then_refused("job_running")

    def test_while_shut_down_is_refused(self) -> None:
        with_job().given(StopOrchestrator()).when(RUN_NOW, at=1).then_refused("orchestrator_stopped")

    def test_is_in_the_way_of_a_tick(self) -> None:
        story = asked_for().when(claim(), at=60)
        assert [item.type for item in story.recorded] == ["run_skipped"]


class TestTakingItUp:
    def test_is_its_first_attempt(self) -> None:
        story = asked_for()
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

    def test_is_for_the_first_who_does_so(self) -> None:
        story = asked_for()
        id_ = run(story).id
        story.when(take_up(id_, RUNNER), take_up(id_, OTHER), at=31)
        assert [item.type for item in story.recorded] == ["run_retried"]
        assert run(story).runner == RUNNER

    def test_is_ended_like_any_other_run(self) -> None:
        story = asked_for(tokens=600)
        id_ = run(story).id
        story.given(take_up(id_, RUNNER), at=31).when(ended(id_, tokens_used=5), at=32)
        assert story.reply == {"status": "succeeded"}
        assert not list(story.squad.all(RUNS))
        assert story.row(BUDGET_DAYS, START.date()).reserved == 0

    def test_leaves_as_many_attempts_as_the_job_allows(self) -> None:
        story = asked_for(retries=1)
        id_ = run(story).id
        story.given(take_up(id_, RUNNER), at=31)
        story.when(ended(id_, succeeded=False), at=32).replied(status="running")
        story.given(take_up(id_, RUNNER), at=35)
        story.when(ended(id_, succeeded=False, attempt=2), at=36).replied(status="failed")

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            (RemoveJob(name=JOB), "the job was removed before attempt 1 of 1"),
            (StopOrchestrator(), "the orchestrator was shut down before attempt 1 of 1"),
        ],
    )
    def test_is_too_late_where_nothing_may_run_any_more(self, command: Any, reason: str) -> None:
        story = asked_for().given(command, at=31)
        story.when(take_up(run(story).id), at=32)
        [finished] = [event for event in story.events if isinstance(event, RunFinished)]
        assert (finished.outcome, finished.reason, finished.attempts) == ("failed", reason, 0)


class TestWaitingForTooLong:
    def test_is_just_not_too_long_within_the_jobs_catch_up_time(self) -> None:
        story = asked_for(catch_up_seconds=90.0)
        story.when(take_up(run(story).id), at=120)
        assert [item.type for item in story.recorded] == ["run_retried"]

    def test_is_missed_as_a_tick_is(self) -> None:
        story = asked_for(tokens=600, catch_up_seconds=90.0, pause_on_failure=True)
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

    def test_is_told_before_the_ticks_that_it_would_be_in_the_way_of(self) -> None:
        """Nobody was there for a while; whoever comes takes runs up first, and then claims ticks."""
        story = asked_for()
        story.when(take_up(run(story).id), claim(), at=121)
        kinds = [item.type for item in story.recorded]
        assert "run_skipped" not in kinds
        assert kinds[-1] == "run_started"

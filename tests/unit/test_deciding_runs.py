"""Decisions about runs: attempts, leases, retries, pauses after failures, and tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from eventstore.events import (
    AgentStatusChanged,
    BudgetThresholdCrossed,
    JobPaused,
    JobRemoved,
    MessageSent,
    RunAttemptFailed,
    RunFinished,
    RunRenewed,
    RunRetried,
    RunStarted,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS, BudgetDayRow
from projections.jobs import JOBS
from projections.runs import RUNS, RunRow, run_id
from service.commands import (
    Heartbeat,
    PauseJob,
    RemoveJob,
    RenewRun,
    SetPolicy,
    StartOperation,
    StopOrchestrator,
)
from service.decide.runs import LEASE_SECONDS, MAX_BACKOFF_SECONDS, backoff
from tests.unit.job_stories import JOB, OTHER, RUNNER, claim, define, end_attempt, take_up, with_job
from tests.unit.stories import FRESH, START, UNKNOWN_ID, Story, moment

RUN = run_id(JOB, moment(60))
LEASE_END = 60 + LEASE_SECONDS
RENEW = RenewRun(run_id=RUN, runner=RUNNER)
BECAME_IDLE = AgentStatusChanged(agent="ann", previous="active", status="idle", reason="run_ended")
TODAY = START.date()


def running(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """A squad with the run of its job's first tick in progress in a process."""
    return with_job(policy, **fields).given(claim(), at=60)


def run(story: Story) -> RunRow:
    return story.row(RUNS, RUN)


def today(story: Story) -> BudgetDayRow:
    return story.row(BUDGET_DAYS, TODAY)


def finished(**fields: Any) -> RunFinished:
    values: dict[str, Any] = {"outcome": "succeeded", "attempts": 1, "reason": None, "tokens_used": None}
    values = {"agent": "ann", **values, **fields}
    answered = values["outcome"] == "succeeded" and values["agent"] is not None
    return RunFinished(run_id=RUN, job=JOB, **{"answered": answered, **values})


def report(message: str, status: str = "succeeded", sender: str = "ann", **data: Any) -> MessageSent:
    return MessageSent(
        message_id=FRESH,
        agent=sender,
        to_agent="orchestrator",
        message=message,
        task_id=None,
        data={**data, "job": JOB, "run_id": RUN, "status": status},
    )


def attempt_failed(story: Story, **fields: Any) -> RunAttemptFailed:
    values: dict[str, Any] = {"attempt": 1, "reason": "no answer", "tokens_used": None, **fields}
    retry_at = story.now + backoff(RUN, values["attempt"])
    return RunAttemptFailed(run_id=RUN, job=JOB, retry_at=retry_at, **values)


def retried(attempt: int, at: float, *, lease_ran_out: bool) -> RunRetried:
    return RunRetried(
        run_id=RUN,
        job=JOB,
        attempt=attempt,
        runner=OTHER,
        lease_expires_at=moment(at + LEASE_SECONDS),
        lease_ran_out=lease_ran_out,
        operation_id=None,
    )


def is_cleaned_up(story: Story) -> bool:
    """Whether no run, no work of the agent and no reserved tokens are left."""
    return not (list(story.squad.all(RUNS)) or story.row(AGENTS, "ann").operations or today(story).reserved)


class TestSuccess:
    def test_success_ends_the_run_reports_it_and_sets_the_agent_idle(self) -> None:
        story = running().when(end_attempt(RUN), at=65)
        story.then(finished(), report("it is done"), BECAME_IDLE).then_replied(status="succeeded")
        assert is_cleaned_up(story)

    def test_success_ends_the_run_even_if_attempts_are_left(self) -> None:
        story = running(retries=2).when(end_attempt(RUN), at=65)
        story.then(finished(), report("it is done"), BECAME_IDLE).then_replied(status="succeeded")

    def test_end_is_caused_by_the_run_and_causes_message_and_status_change(self) -> None:
        story = running()
        start = run(story).position
        story.when(end_attempt(RUN), at=65)
        assert story.caused_by(RunFinished) == start
        end = story.position_of(RunFinished)
        assert story.caused_by(MessageSent) == story.caused_by(AgentStatusChanged) == end

    def test_message_contains_the_data_of_the_report(self) -> None:
        story = running().when(end_attempt(RUN, data={"new": 3}), at=65)
        story.then(finished(), report("it is done", new=3), BECAME_IDLE)

    def test_orchestrator_reports_the_success_of_a_job_without_agent(self) -> None:
        story = running(agent=None, endpoint=None, task="status_update").when(end_attempt(RUN), at=65)
        story.then(finished(agent=None), report("it is done", sender="orchestrator"))

    def test_agent_stays_active_while_it_has_other_work(self) -> None:
        story = running().given(
            StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}), at=61
        )
        story.when(end_attempt(RUN), at=65).then(finished(), report("it is done"))
        assert story.row(AGENTS, "ann").operations == 1

    def test_agent_that_reported_idle_becomes_active_and_then_idle_again(self) -> None:
        story = running().given(Heartbeat(agent="ann", status="idle"), at=61).when(end_attempt(RUN), at=65)
        became_active = AgentStatusChanged(agent="ann", previous="idle", status="active", reason="activity")
        story.then(became_active, finished(), report("it is done"), BECAME_IDLE)

    def test_success_after_long_silence_sets_the_agent_idle_not_offline(self) -> None:
        story = running(SetPolicy(offline_after_minutes=1)).when(end_attempt(RUN), at=300)
        story.then_clock_recorded().then(finished(), report("it is done"), BECAME_IDLE)


class TestRunHolder:
    @pytest.mark.parametrize(
        "command",
        [
            end_attempt(RUN, runner=OTHER),
            end_attempt(RUN, attempt=2),
            end_attempt(UNKNOWN_ID),
            RenewRun(run_id=RUN, runner=OTHER),
            RenewRun(run_id=UNKNOWN_ID, runner=RUNNER),
        ],
    )
    def test_only_the_holder_can_end_or_renew_the_attempt(self, command: Any) -> None:
        running().when(command, at=61).then_refused("run_not_held")

    def test_run_that_has_ended_can_be_neither_ended_nor_renewed(self) -> None:
        running().given(end_attempt(RUN), at=61).when(end_attempt(RUN), RENEW, at=62).then_refused(
            "run_not_held"
        )

    def test_former_holder_cannot_end_a_run_that_was_taken_over(self) -> None:
        story = running(retries=1).given(take_up(RUN), at=LEASE_END)
        story.when(end_attempt(RUN), at=LEASE_END).then_refused("run_not_held")
        story.when(end_attempt(RUN, runner=OTHER, attempt=2)).then(
            finished(attempts=2), report("it is done"), BECAME_IDLE
        )

    def test_holder_can_end_the_run_after_its_lease_when_nobody_took_it_over(self) -> None:
        running().when(end_attempt(RUN), at=LEASE_END + 1).then(
            finished(), report("it is done"), BECAME_IDLE
        )


class TestLease:
    def test_renewal_extends_the_lease_from_now(self) -> None:
        story = running().when(RENEW, at=65)
        until = moment(65 + LEASE_SECONDS)
        story.then(RunRenewed(run_id=RUN, job=JOB, lease_expires_at=until)).then_replied(
            lease_expires_at=until
        )

    def test_run_cannot_be_taken_over_before_its_lease_expires(self) -> None:
        story = running(retries=1).when(take_up(RUN), at=LEASE_END - 0.000001).then_nothing()
        story.when(take_up(RUN), at=LEASE_END).then(retried(2, LEASE_END, lease_ran_out=True))

    def test_run_cannot_be_taken_over_while_its_lease_is_renewed(self) -> None:
        story = running(retries=1).given(RENEW, at=LEASE_END - 1)
        story.when(take_up(RUN), at=LEASE_END).then_nothing()

    def test_first_process_to_take_the_run_over_gets_it(self) -> None:
        story = running(retries=1).when(take_up(RUN), take_up(RUN, "process-3"), at=LEASE_END)
        story.then(retried(2, LEASE_END, lease_ran_out=True))

    def test_run_is_lost_when_its_lease_expires_in_the_last_attempt(self) -> None:
        story = running().when(take_up(RUN), at=LEASE_END)
        reason = "the process that ran it vanished"
        story.then(
            finished(outcome="lost", reason=reason),
            report(f"poll was lost: {reason}", "lost", sender="orchestrator"),
            BECAME_IDLE,
        )
        assert is_cleaned_up(story)

    def test_taking_over_an_unknown_run_records_nothing(self) -> None:
        running().when(take_up(UNKNOWN_ID), at=LEASE_END).then_nothing()


class TestFailedAttempt:
    def test_failed_attempt_is_recorded_with_the_time_of_the_retry(self) -> None:
        story = running(retries=1).when(end_attempt(RUN, succeeded=False), at=65)
        story.then(attempt_failed(story)).then_replied(
            status="running", retry_at=story.now + backoff(RUN, 1)
        )

    def test_run_can_be_taken_up_once_the_backoff_is_over(self) -> None:
        story = running(retries=1).given(end_attempt(RUN, succeeded=False), at=65)
        due = 65 + backoff(RUN, 1) / timedelta(seconds=1)
        story.when(take_up(RUN), at=due - 0.001).then_nothing()
        story.when(take_up(RUN), at=due).then(retried(2, due, lease_ran_out=False))

    def test_retry_may_come_later_than_the_catch_up_time(self) -> None:
        """A tick's catch-up time limits its first attempt only."""
        story = running(retries=1, catch_up_seconds=60.0).given(end_attempt(RUN, succeeded=False), at=300)
        story.when(take_up(RUN), at=302).then(retried(2, 302, lease_ran_out=False))

    def test_run_fails_when_its_job_is_removed_in_the_batch_of_the_retry(self) -> None:
        story = running(retries=1).given(end_attempt(RUN, succeeded=False), at=65)
        story.when(RemoveJob(name=JOB), take_up(RUN), at=70)
        reason = "the job was removed before attempt 2 of 2"
        assert finished(outcome="failed", reason=reason) in story.events

    def test_failed_attempt_that_used_tokens_makes_its_agent_active(self) -> None:
        story = running(retries=1).given(Heartbeat(agent="ann", status="idle"), at=61)
        story.when(end_attempt(RUN, succeeded=False, tokens_used=5), at=65).then(
            AgentStatusChanged(agent="ann", previous="idle", status="active", reason="activity"),
            TokensUsed(day=TODAY, agent="ann", tokens=5),
            attempt_failed(story, tokens_used=5),
        )

    def test_agent_stays_active_and_tokens_stay_reserved_until_the_retry(self) -> None:
        story = running(tokens=600, retries=1).given(end_attempt(RUN, succeeded=False), at=65)
        assert story.row(AGENTS, "ann").status == "active"
        assert story.row(AGENTS, "ann").operations == 1
        assert today(story).reserved == 600

    def test_failed_attempt_without_a_reason_gets_a_default_one(self) -> None:
        story = running(retries=1).when(end_attempt(RUN, succeeded=False, reason=None), at=65)
        story.then(attempt_failed(story, reason="it failed"))

    def test_failed_run_leaves_an_agent_that_reported_idle_unchanged(self) -> None:
        story = running().given(Heartbeat(agent="ann", status="idle"), at=61)
        story.when(end_attempt(RUN, succeeded=False), at=65).then(
            finished(outcome="failed", reason="no answer"),
            report("it is not done", "failed", sender="orchestrator"),
        )

    def test_run_fails_when_its_last_attempt_fails(self) -> None:
        story = (
            running(retries=1).given(end_attempt(RUN, succeeded=False), at=65).given(take_up(RUN), at=70)
        )
        story.when(end_attempt(RUN, succeeded=False, attempt=2, runner=OTHER), at=71)
        story.then(
            finished(outcome="failed", attempts=2, reason="no answer"),
            report("it is not done", "failed", sender="orchestrator"),
            BECAME_IDLE,
        ).then_replied(status="failed")
        assert is_cleaned_up(story)

    def test_retry_starts_even_if_the_job_is_paused(self) -> None:
        story = running(retries=1).given(end_attempt(RUN, succeeded=False), PauseJob(name=JOB), at=65)
        story.when(take_up(RUN), at=70).then(retried(2, 70, lease_ran_out=False))

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            (RemoveJob(name=JOB), "the job was removed before attempt 2 of 2"),
            (StopOrchestrator(), "the orchestrator was shut down before attempt 2 of 2"),
            (
                define(agent="orchestrator", retries=1, tokens=600, pause_on_failure=True),
                "the job's agent was changed before attempt 2 of 2",
            ),
        ],
    )
    def test_run_fails_without_a_retry_when_its_job_may_no_longer_run(
        self, command: Any, reason: str
    ) -> None:
        story = running(retries=1, tokens=600, pause_on_failure=True)
        story.given(end_attempt(RUN, succeeded=False), command, at=65).when(take_up(RUN), at=70)
        assert story.events[1:] == [
            finished(outcome="failed", reason=reason),
            report(f"poll failed: {reason}", "failed", sender="orchestrator"),
            BECAME_IDLE,
        ]
        assert isinstance(story.events[0], TokensReleased)
        assert is_cleaned_up(story)

    def test_run_of_a_vanished_process_fails_when_the_orchestrator_is_shut_down(self) -> None:
        story = running(retries=1).given(StopOrchestrator(), at=65).when(take_up(RUN), at=LEASE_END)
        assert story.events[0] == finished(
            outcome="failed", reason="the orchestrator was shut down before attempt 2 of 2"
        )


class TestBackoff:
    @pytest.mark.parametrize(
        ("attempt", "longest"), [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (20, 300)]
    )
    def test_backoff_doubles_up_to_a_maximum_minus_up_to_half_as_jitter(
        self, attempt: int, longest: float
    ) -> None:
        waits = [backoff(run_id(JOB, moment(n)), attempt) for n in range(200)]
        assert all(timedelta(seconds=longest / 2) <= wait <= timedelta(seconds=longest) for wait in waits)
        assert min(waits) < timedelta(seconds=longest * 0.6)
        assert max(waits) > timedelta(seconds=longest * 0.9)
        assert longest <= MAX_BACKOFF_SECONDS

    def test_backoff_is_the_same_each_time_it_is_computed(self) -> None:
        assert backoff(RUN, 3) == backoff(RUN, 3)


class TestPauseOnFailure:
    def test_failure_pauses_the_job_with_its_reason_as_the_note(self) -> None:
        story = running(pause_on_failure=True).when(end_attempt(RUN, succeeded=False), at=65)
        story.then(
            finished(outcome="failed", reason="no answer"),
            report("it is not done", "failed", sender="orchestrator"),
            JobPaused(job=JOB, reason="failure", note="no answer"),
            BECAME_IDLE,
        )
        assert story.caused_by(JobPaused) == story.position_of(RunFinished)

    def test_lost_run_does_not_pause_the_job(self) -> None:
        story = running(pause_on_failure=True).when(take_up(RUN), at=LEASE_END)
        assert [event.outcome for event in story.events if isinstance(event, RunFinished)] == ["lost"]
        assert not story.row(JOBS, JOB).paused

    def test_failure_caused_by_the_orchestrator_does_not_pause_the_job(self) -> None:
        story = running(pause_on_failure=True).when(end_attempt(RUN, succeeded=False, ours=True), at=65)
        story.then(
            finished(outcome="failed", reason="no answer"),
            report("it is not done", "failed", sender="orchestrator"),
            BECAME_IDLE,
        ).then_replied(status="failed")
        assert not story.row(JOBS, JOB).paused

    def test_job_is_not_paused_before_its_last_attempt_fails(self) -> None:
        story = running(pause_on_failure=True, retries=1).given(end_attempt(RUN, succeeded=False), at=65)
        assert not story.row(JOBS, JOB).paused

    def test_note_of_an_existing_pause_is_kept(self) -> None:
        story = running(pause_on_failure=True).given(PauseJob(name=JOB, note="holidays"), at=61)
        story.given(end_attempt(RUN, succeeded=False), at=65)
        assert story.row(JOBS, JOB).pause_note == "holidays"

    def test_removed_job_is_not_paused(self) -> None:
        story = running(pause_on_failure=True).given(RemoveJob(name=JOB), at=61)
        story.when(end_attempt(RUN, succeeded=False), at=65)
        assert not any(isinstance(event, JobPaused) for event in story.events)

    def test_job_removed_in_the_same_batch_is_not_paused(self) -> None:
        story = running(pause_on_failure=True).when(
            RemoveJob(name=JOB), end_attempt(RUN, succeeded=False), at=61
        )
        kinds = [type(event) for event in story.events]
        assert kinds == [JobRemoved, RunFinished, MessageSent, AgentStatusChanged]


class TestTokens:
    SMALL_BUDGET = SetPolicy(daily_tokens=1_000)

    def test_used_tokens_settle_the_reservation(self) -> None:
        story = running(self.SMALL_BUDGET, tokens=600)
        reservation = run(story).reservation_id
        assert reservation
        story.when(end_attempt(RUN, tokens_used=400), at=65)
        settled = TokensSettled(
            day=TODAY, reservation_id=reservation, agent="ann", tokens_reserved=600, tokens_used=400
        )
        story.then(settled, finished(tokens_used=400), report("it is done"), BECAME_IDLE)
        assert story.caused_by(TokensSettled) == story.position_of(TokensReserved)
        assert (today(story).used, today(story).reserved) == (400, 0)

    def test_settled_tokens_can_cross_warning_thresholds(self) -> None:
        story = running(self.SMALL_BUDGET, tokens=600).when(end_attempt(RUN, tokens_used=760), at=65)
        crossed = [event for event in story.events if isinstance(event, BudgetThresholdCrossed)]
        assert [(event.percent, event.level, event.used) for event in crossed] == [
            (50, "info", 760),
            (75, "warning", 760),
        ]
        assert story.caused_by(BudgetThresholdCrossed) == story.position_of(TokensSettled)

    @pytest.mark.parametrize("succeeded", [True, False])
    def test_reservation_is_released_when_no_usage_is_reported(self, succeeded: bool) -> None:
        story = running(self.SMALL_BUDGET, tokens=600).when(end_attempt(RUN, succeeded=succeeded), at=65)
        assert isinstance(story.events[0], TokensReleased)
        assert (today(story).used, today(story).reserved) == (0, 0)

    def test_reservation_of_a_lost_run_is_released(self) -> None:
        story = running(self.SMALL_BUDGET, tokens=600).given(take_up(RUN), at=LEASE_END)
        assert (today(story).used, today(story).reserved) == (0, 0)

    def test_used_tokens_are_recorded_even_if_none_were_reserved(self) -> None:
        story = running(self.SMALL_BUDGET).when(end_attempt(RUN, tokens_used=900), at=65)
        kinds = [type(event) for event in story.events]
        assert kinds == [
            TokensUsed,
            *[BudgetThresholdCrossed] * 3,
            RunFinished,
            MessageSent,
            AgentStatusChanged,
        ]
        assert story.caused_by(TokensUsed) == story.position_of(RunStarted)
        assert story.caused_by(BudgetThresholdCrossed) == story.position_of(TokensUsed)

    def test_tokens_of_a_job_without_agent_count_for_the_orchestrator(self) -> None:
        story = running(agent=None, endpoint=None, task="token_monitor").when(
            end_attempt(RUN, tokens_used=5), at=65
        )
        assert story.events[0] == TokensUsed(day=TODAY, agent="orchestrator", tokens=5)

    def test_tokens_of_a_failed_attempt_count_at_once_and_can_cross_thresholds(self) -> None:
        story = running(self.SMALL_BUDGET, tokens=300, retries=1)
        story.when(end_attempt(RUN, succeeded=False, tokens_used=550), at=65)
        story.then(
            TokensUsed(day=TODAY, agent="ann", tokens=550),
            BudgetThresholdCrossed(day=TODAY, percent=50, level="info", used=550, total=1_000),
            attempt_failed(story, tokens_used=550),
        )
        assert (today(story).used, today(story).reserved) == (550, 300)

    def test_run_sums_up_the_tokens_of_all_attempts(self) -> None:
        story = running(self.SMALL_BUDGET, tokens=300, retries=2)
        story.given(end_attempt(RUN, succeeded=False, tokens_used=10), at=65).given(
            take_up(RUN, RUNNER), at=70
        )
        story.given(end_attempt(RUN, succeeded=False, attempt=2), at=71).given(take_up(RUN, RUNNER), at=75)
        assert run(story).tokens_used == 10
        story.when(end_attempt(RUN, attempt=3, tokens_used=200), at=76)
        assert finished(attempts=3, tokens_used=210) in story.events
        assert (today(story).used, today(story).reserved) == (210, 0)

    def test_used_tokens_are_recorded_when_the_reservation_has_expired(self) -> None:
        """The reservation ends at 676 s: one attempt of 1 s, the lease of 15 s and a margin of 600 s."""
        story = running(self.SMALL_BUDGET, tokens=300, timeout_seconds=1.0).given(RENEW, at=676)
        assert today(story).reserved == 0
        story.when(end_attempt(RUN, tokens_used=200), at=680)
        assert TokensUsed(day=TODAY, agent="ann", tokens=200) in story.events
        assert today(story).used == 200

    @pytest.mark.parametrize("tokens", [200, None])
    def test_nothing_stays_reserved_when_the_reservation_expires_as_the_run_ends(
        self, tokens: int | None
    ) -> None:
        story = running(self.SMALL_BUDGET, tokens=300, timeout_seconds=1.0)
        story.when(end_attempt(RUN, tokens_used=tokens), at=676)
        assert type(story.clock_events[0]) is TokensReleased
        assert (today(story).used, today(story).reserved) == (tokens or 0, 0)

    def test_expired_reservation_is_not_released_again(self) -> None:
        story = running(self.SMALL_BUDGET, tokens=300, timeout_seconds=1.0).given(RENEW, at=676)
        story.when(end_attempt(RUN), at=680).then(finished(), report("it is done"), BECAME_IDLE)

    def test_tokens_count_on_the_day_of_their_reservation(self) -> None:
        """The run starts a minute before midnight and ends a minute after it."""
        late = 12 * 3_600 - 60
        id_ = run_id(JOB, moment(late))
        story = with_job(self.SMALL_BUDGET, cron="59 23 * * *", tokens=300, timeout_seconds=300.0)
        story.given(claim(), at=late)
        story.when(end_attempt(id_, tokens_used=200), at=late + 120)
        settled = story.events[0]
        assert isinstance(settled, TokensSettled)
        assert settled.day == TODAY
        assert story.squad.day
        assert (story.squad.day.used, story.squad.day.reserved) == (0, 0)

    def test_tokens_of_yesterday_cross_no_threshold_of_today(self) -> None:
        late = 12 * 3_600 - 60
        story = with_job(self.SMALL_BUDGET, cron="59 23 * * *", tokens=900, timeout_seconds=300.0)
        story.given(claim(), at=late)
        story.when(end_attempt(run_id(JOB, moment(late)), tokens_used=900), at=late + 120)
        kinds = [type(event) for event in story.events]
        assert kinds == [TokensSettled, RunFinished, MessageSent, AgentStatusChanged]

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
from tests.unit.job_stories import JOB, OTHER, RUNNER, claim, define, ended, take_up, with_job
from tests.unit.support import FRESH, START, UNKNOWN_ID, Story, moment

RUN = run_id(JOB, moment(60))
LEASE_END = 60 + LEASE_SECONDS
RENEW = RenewRun(run_id=RUN, runner=RUNNER)
AT_REST = AgentStatusChanged(agent="ann", previous="active", status="idle", reason="run_ended")
TODAY = START.date()


def running(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """A squad whose job has been running since its first tick, carried out by a process."""
    return with_job(policy, **fields).given(claim(), at=60)


def run(story: Story) -> RunRow:
    return story.row(RUNS, RUN)


def today(story: Story) -> BudgetDayRow:
    return story.row(BUDGET_DAYS, TODAY)


def finished(**fields: Any) -> RunFinished:
    told: dict[str, Any] = {"outcome": "succeeded", "attempts": 1, "reason": None, "tokens_used": None}
    told = {"agent": "ann", **told, **fields}
    answered = told["outcome"] == "succeeded" and told["agent"] is not None
    return RunFinished(run_id=RUN, job=JOB, **{"answered": answered, **told})


def told(message: str, status: str = "succeeded", by: str = "ann", **data: Any) -> MessageSent:
    return MessageSent(
        message_id=FRESH,
        agent=by,
        to_agent="orchestrator",
        message=message,
        task_id=None,
        data={**data, "job": JOB, "run_id": RUN, "status": status},
    )


def attempt_failed(story: Story, **fields: Any) -> RunAttemptFailed:
    told: dict[str, Any] = {"attempt": 1, "reason": "no answer", "tokens_used": None, **fields}
    retry_at = story.now + backoff(RUN, told["attempt"])
    return RunAttemptFailed(run_id=RUN, job=JOB, retry_at=retry_at, **told)


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


def nothing_is_left_of_it(story: Story) -> bool:
    """No run, no work of the agent's, no tokens set aside."""
    return not (list(story.squad.all(RUNS)) or story.row(AGENTS, "ann").operations or today(story).reserved)


class TestSuccess:
    def test_ends_the_run_tells_the_squad_and_lets_the_agent_rest(self) -> None:
        story = running().when(ended(RUN), at=65)
        story.then(finished(), told("it is done"), AT_REST).replied(status="succeeded")
        assert nothing_is_left_of_it(story)

    def test_is_the_end_also_where_more_attempts_are_allowed(self) -> None:
        story = running(retries=2).when(ended(RUN), at=65)
        story.then(finished(), told("it is done"), AT_REST).replied(status="succeeded")

    def test_is_caused_by_the_run_and_causes_the_rest(self) -> None:
        story = running()
        start = run(story).position
        story.when(ended(RUN), at=65)
        assert story.caused_by(RunFinished) == start
        end = story.position_of(RunFinished)
        assert story.caused_by(MessageSent) == story.caused_by(AgentStatusChanged) == end

    def test_tells_what_came_with_the_report(self) -> None:
        story = running().when(ended(RUN, data={"new": 3}), at=65)
        story.then(finished(), told("it is done", new=3), AT_REST)

    def test_of_a_job_without_an_agent_is_told_by_the_orchestrator(self) -> None:
        story = running(agent=None, endpoint=None, task="status_update").when(ended(RUN), at=65)
        story.then(finished(agent=None), told("it is done", by="orchestrator"))

    def test_leaves_an_agent_at_its_other_work(self) -> None:
        story = running().given(
            StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}), at=61
        )
        story.when(ended(RUN), at=65).then(finished(), told("it is done"))
        assert story.row(AGENTS, "ann").operations == 1

    def test_of_an_agent_that_called_itself_idle_wakes_and_rests_it(self) -> None:
        story = running().given(Heartbeat(agent="ann", status="idle"), at=61).when(ended(RUN), at=65)
        woken = AgentStatusChanged(agent="ann", previous="idle", status="active", reason="activity")
        story.then(woken, finished(), told("it is done"), AT_REST)

    def test_is_a_sign_of_life_however_long_the_agent_was_silent_at_its_work(self) -> None:
        story = running(SetPolicy(offline_after_minutes=1)).when(ended(RUN), at=300)
        story.meanwhile().then(finished(), told("it is done"), AT_REST)


class TestWhoMayEndAnAttempt:
    @pytest.mark.parametrize(
        "command",
        [
            ended(RUN, runner=OTHER),
            ended(RUN, attempt=2),
            ended(UNKNOWN_ID),
            RenewRun(run_id=RUN, runner=OTHER),
            RenewRun(run_id=UNKNOWN_ID, runner=RUNNER),
        ],
    )
    def test_is_nobody_but_the_process_that_holds_it(self, command: Any) -> None:
        running().when(command, at=61).then_refused("run_not_held")

    def test_is_nobody_once_it_has_ended(self) -> None:
        running().given(ended(RUN), at=61).when(ended(RUN), RENEW, at=62).then_refused("run_not_held")

    def test_is_no_process_whose_run_was_taken_up_by_another(self) -> None:
        story = running(retries=1).given(take_up(RUN), at=LEASE_END)
        story.when(ended(RUN), at=LEASE_END).then_refused("run_not_held")
        story.when(ended(RUN, runner=OTHER, attempt=2)).then(
            finished(attempts=2), told("it is done"), AT_REST
        )

    def test_is_still_the_process_that_was_late_where_nobody_took_it_up(self) -> None:
        running().when(ended(RUN), at=LEASE_END + 1).then(finished(), told("it is done"), AT_REST)


class TestTheLease:
    def test_is_renewed_from_now(self) -> None:
        story = running().when(RENEW, at=65)
        until = moment(65 + LEASE_SECONDS)
        story.then(RunRenewed(run_id=RUN, job=JOB, lease_expires_at=until)).replied(lease_expires_at=until)

    def test_keeps_others_away_up_to_its_end(self) -> None:
        story = running(retries=1).when(take_up(RUN), at=LEASE_END - 0.000001).then_nothing()
        story.when(take_up(RUN), at=LEASE_END).then(retried(2, LEASE_END, lease_ran_out=True))

    def test_keeps_others_away_as_long_as_it_is_renewed(self) -> None:
        story = running(retries=1).given(RENEW, at=LEASE_END - 1)
        story.when(take_up(RUN), at=LEASE_END).then_nothing()

    def test_goes_to_the_first_who_takes_the_run_up(self) -> None:
        story = running(retries=1).when(take_up(RUN), take_up(RUN, "process-3"), at=LEASE_END)
        story.then(retried(2, LEASE_END, lease_ran_out=True))

    def test_that_runs_out_in_the_last_attempt_loses_the_run(self) -> None:
        story = running().when(take_up(RUN), at=LEASE_END)
        reason = "the process that ran it vanished"
        story.then(
            finished(outcome="lost", reason=reason),
            told(f"poll was lost: {reason}", "lost", by="orchestrator"),
            AT_REST,
        )
        assert nothing_is_left_of_it(story)

    def test_of_a_run_that_nobody_knows_is_nothing_to_take(self) -> None:
        running().when(take_up(UNKNOWN_ID), at=LEASE_END).then_nothing()


class TestAFailedAttempt:
    def test_is_followed_by_another_after_a_while(self) -> None:
        story = running(retries=1).when(ended(RUN, succeeded=False), at=65)
        story.then(attempt_failed(story)).replied(status="running", retry_at=story.now + backoff(RUN, 1))

    def test_gives_the_run_to_whoever_is_first_when_that_is_over(self) -> None:
        story = running(retries=1).given(ended(RUN, succeeded=False), at=65)
        due = 65 + backoff(RUN, 1) / timedelta(seconds=1)
        story.when(take_up(RUN), at=due - 0.001).then_nothing()
        story.when(take_up(RUN), at=due).then(retried(2, due, lease_ran_out=False))

    def test_is_followed_by_another_however_long_after_the_tick(self) -> None:
        """A tick's catch-up time is for its first attempt."""
        story = running(retries=1, catch_up_seconds=60.0).given(ended(RUN, succeeded=False), at=300)
        story.when(take_up(RUN), at=302).then(retried(2, 302, lease_ran_out=False))

    def test_is_the_last_where_the_job_is_removed_in_the_same_batch(self) -> None:
        story = running(retries=1).given(ended(RUN, succeeded=False), at=65)
        story.when(RemoveJob(name=JOB), take_up(RUN), at=70)
        reason = "the job was removed before attempt 2 of 2"
        assert finished(outcome="failed", reason=reason) in story.events

    def test_that_used_tokens_is_an_act_of_its_agent(self) -> None:
        story = running(retries=1).given(Heartbeat(agent="ann", status="idle"), at=61)
        story.when(ended(RUN, succeeded=False, tokens_used=5), at=65).then(
            AgentStatusChanged(agent="ann", previous="idle", status="active", reason="activity"),
            TokensUsed(day=TODAY, agent="ann", tokens=5),
            attempt_failed(story, tokens_used=5),
        )

    def test_keeps_its_agent_at_work_and_its_tokens(self) -> None:
        story = running(tokens=600, retries=1).given(ended(RUN, succeeded=False), at=65)
        assert story.row(AGENTS, "ann").status == "active"
        assert story.row(AGENTS, "ann").operations == 1
        assert today(story).reserved == 600

    def test_without_a_reason_still_has_one(self) -> None:
        story = running(retries=1).when(ended(RUN, succeeded=False, reason=None), at=65)
        story.then(attempt_failed(story, reason="it failed"))

    def test_leaves_an_agent_as_it_is_that_called_itself_idle(self) -> None:
        story = running().given(Heartbeat(agent="ann", status="idle"), at=61)
        story.when(ended(RUN, succeeded=False), at=65).then(
            finished(outcome="failed", reason="no answer"),
            told("it is not done", "failed", by="orchestrator"),
        )

    def test_is_the_last_where_no_other_is_allowed(self) -> None:
        story = running(retries=1).given(ended(RUN, succeeded=False), at=65).given(take_up(RUN), at=70)
        story.when(ended(RUN, succeeded=False, attempt=2, runner=OTHER), at=71)
        story.then(
            finished(outcome="failed", attempts=2, reason="no answer"),
            told("it is not done", "failed", by="orchestrator"),
            AT_REST,
        ).replied(status="failed")
        assert nothing_is_left_of_it(story)

    def test_goes_on_where_the_job_is_paused(self) -> None:
        story = running(retries=1).given(ended(RUN, succeeded=False), PauseJob(name=JOB), at=65)
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
    def test_is_the_last_where_nothing_may_run_any_more(self, command: Any, reason: str) -> None:
        story = running(retries=1, tokens=600, pause_on_failure=True)
        story.given(ended(RUN, succeeded=False), command, at=65).when(take_up(RUN), at=70)
        assert story.events[1:] == [
            finished(outcome="failed", reason=reason),
            told(f"poll failed: {reason}", "failed", by="orchestrator"),
            AT_REST,
        ]
        assert isinstance(story.events[0], TokensReleased)
        assert nothing_is_left_of_it(story)

    def test_is_the_last_also_where_the_process_vanished_meanwhile(self) -> None:
        story = running(retries=1).given(StopOrchestrator(), at=65).when(take_up(RUN), at=LEASE_END)
        assert story.events[0] == finished(
            outcome="failed", reason="the orchestrator was shut down before attempt 2 of 2"
        )


class TestBackoff:
    @pytest.mark.parametrize(
        ("attempt", "longest"), [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (20, 300)]
    )
    def test_doubles_up_to_a_bound_less_up_to_half(self, attempt: int, longest: float) -> None:
        waits = [backoff(run_id(JOB, moment(n)), attempt) for n in range(200)]
        assert all(timedelta(seconds=longest / 2) <= wait <= timedelta(seconds=longest) for wait in waits)
        assert min(waits) < timedelta(seconds=longest * 0.6)
        assert max(waits) > timedelta(seconds=longest * 0.9)
        assert longest <= MAX_BACKOFF_SECONDS

    def test_is_the_same_whoever_works_it_out(self) -> None:
        assert backoff(RUN, 3) == backoff(RUN, 3)


class TestPausingOnFailure:
    def test_pauses_the_job_with_the_reason_as_its_note(self) -> None:
        story = running(pause_on_failure=True).when(ended(RUN, succeeded=False), at=65)
        story.then(
            finished(outcome="failed", reason="no answer"),
            told("it is not done", "failed", by="orchestrator"),
            JobPaused(job=JOB, reason="failure", note="no answer"),
            AT_REST,
        )
        assert story.caused_by(JobPaused) == story.position_of(RunFinished)

    def test_is_not_for_a_run_that_was_lost(self) -> None:
        story = running(pause_on_failure=True).when(take_up(RUN), at=LEASE_END)
        assert [event.outcome for event in story.events if isinstance(event, RunFinished)] == ["lost"]
        assert not story.row(JOBS, JOB).paused

    def test_is_not_for_what_failed_by_us(self) -> None:
        story = running(pause_on_failure=True).when(ended(RUN, succeeded=False, ours=True), at=65)
        story.then(
            finished(outcome="failed", reason="no answer"),
            told("it is not done", "failed", by="orchestrator"),
            AT_REST,
        ).replied(status="failed")
        assert not story.row(JOBS, JOB).paused

    def test_waits_for_the_last_attempt(self) -> None:
        story = running(pause_on_failure=True, retries=1).given(ended(RUN, succeeded=False), at=65)
        assert not story.row(JOBS, JOB).paused

    def test_leaves_the_note_of_a_pause_that_is_there(self) -> None:
        story = running(pause_on_failure=True).given(PauseJob(name=JOB, note="holidays"), at=61)
        story.given(ended(RUN, succeeded=False), at=65)
        assert story.row(JOBS, JOB).pause_note == "holidays"

    def test_leaves_a_job_alone_that_was_removed(self) -> None:
        story = running(pause_on_failure=True).given(RemoveJob(name=JOB), at=61)
        story.when(ended(RUN, succeeded=False), at=65)
        assert not any(isinstance(event, JobPaused) for event in story.events)

    def test_leaves_it_alone_also_where_that_is_decided_together(self) -> None:
        story = running(pause_on_failure=True).when(RemoveJob(name=JOB), ended(RUN, succeeded=False), at=61)
        kinds = [type(event) for event in story.events]
        assert kinds == [JobRemoved, RunFinished, MessageSent, AgentStatusChanged]


class TestTokens:
    POOR = SetPolicy(daily_tokens=1_000)

    def test_that_were_used_take_the_place_of_those_reserved(self) -> None:
        story = running(self.POOR, tokens=600)
        reservation = run(story).reservation_id
        assert reservation
        story.when(ended(RUN, tokens_used=400), at=65)
        settled = TokensSettled(
            day=TODAY, reservation_id=reservation, agent="ann", tokens_reserved=600, tokens_used=400
        )
        story.then(settled, finished(tokens_used=400), told("it is done"), AT_REST)
        assert story.caused_by(TokensSettled) == story.position_of(TokensReserved)
        assert (today(story).used, today(story).reserved) == (400, 0)

    def test_that_cross_a_warning_are_warned_of(self) -> None:
        story = running(self.POOR, tokens=600).when(ended(RUN, tokens_used=760), at=65)
        crossed = [event for event in story.events if isinstance(event, BudgetThresholdCrossed)]
        assert [(event.percent, event.level, event.used) for event in crossed] == [
            (50, "info", 760),
            (75, "warning", 760),
        ]
        assert story.caused_by(BudgetThresholdCrossed) == story.position_of(TokensSettled)

    @pytest.mark.parametrize("succeeded", [True, False])
    def test_of_which_nothing_is_said_are_given_back(self, succeeded: bool) -> None:
        story = running(self.POOR, tokens=600).when(ended(RUN, succeeded=succeeded), at=65)
        assert isinstance(story.events[0], TokensReleased)
        assert (today(story).used, today(story).reserved) == (0, 0)

    def test_of_a_lost_run_are_given_back(self) -> None:
        story = running(self.POOR, tokens=600).given(take_up(RUN), at=LEASE_END)
        assert (today(story).used, today(story).reserved) == (0, 0)

    def test_are_used_also_where_none_were_reserved(self) -> None:
        story = running(self.POOR).when(ended(RUN, tokens_used=900), at=65)
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

    def test_of_nobody_in_particular_are_the_orchestrators(self) -> None:
        story = running(agent=None, endpoint=None, task="token_monitor").when(
            ended(RUN, tokens_used=5), at=65
        )
        assert story.events[0] == TokensUsed(day=TODAY, agent="orchestrator", tokens=5)

    def test_of_a_failed_attempt_are_used_at_once_and_warned_of(self) -> None:
        story = running(self.POOR, tokens=300, retries=1)
        story.when(ended(RUN, succeeded=False, tokens_used=550), at=65)
        story.then(
            TokensUsed(day=TODAY, agent="ann", tokens=550),
            BudgetThresholdCrossed(day=TODAY, percent=50, level="info", used=550, total=1_000),
            attempt_failed(story, tokens_used=550),
        )
        assert (today(story).used, today(story).reserved) == (550, 300)

    def test_of_all_attempts_are_summed_up_in_the_run(self) -> None:
        story = running(self.POOR, tokens=300, retries=2)
        story.given(ended(RUN, succeeded=False, tokens_used=10), at=65).given(take_up(RUN, RUNNER), at=70)
        story.given(ended(RUN, succeeded=False, attempt=2), at=71).given(take_up(RUN, RUNNER), at=75)
        assert run(story).tokens_used == 10
        story.when(ended(RUN, attempt=3, tokens_used=200), at=76)
        assert finished(attempts=3, tokens_used=210) in story.events
        assert (today(story).used, today(story).reserved) == (210, 0)

    def test_of_a_run_whose_reservation_ran_out_meanwhile_are_used(self) -> None:
        """It lasts for one attempt of 1 s, the lease of 15 s and 600 s to spare: up to 676 s."""
        story = running(self.POOR, tokens=300, timeout_seconds=1.0).given(RENEW, at=676)
        assert today(story).reserved == 0
        story.when(ended(RUN, tokens_used=200), at=680)
        assert TokensUsed(day=TODAY, agent="ann", tokens=200) in story.events
        assert today(story).used == 200

    @pytest.mark.parametrize("tokens", [200, None])
    def test_of_a_run_whose_reservation_runs_out_as_it_ends_leave_nothing_reserved(
        self, tokens: int | None
    ) -> None:
        story = running(self.POOR, tokens=300, timeout_seconds=1.0)
        story.when(ended(RUN, tokens_used=tokens), at=676)
        assert type(story.clock_events[0]) is TokensReleased
        assert (today(story).used, today(story).reserved) == (tokens or 0, 0)

    def test_of_a_run_whose_reservation_ran_out_need_no_giving_back(self) -> None:
        story = running(self.POOR, tokens=300, timeout_seconds=1.0).given(RENEW, at=676)
        story.when(ended(RUN), at=680).then(finished(), told("it is done"), AT_REST)

    def test_count_on_the_day_of_their_reservation(self) -> None:
        """The run begins a minute before midnight, and ends a minute after it."""
        late = 12 * 3_600 - 60
        id_ = run_id(JOB, moment(late))
        story = with_job(self.POOR, cron="59 23 * * *", tokens=300, timeout_seconds=300.0)
        story.given(claim(), at=late)
        story.when(ended(id_, tokens_used=200), at=late + 120)
        settled = story.events[0]
        assert isinstance(settled, TokensSettled)
        assert settled.day == TODAY
        assert story.squad.day
        assert (story.squad.day.used, story.squad.day.reserved) == (0, 0)

    def test_of_yesterday_set_off_no_warning_of_today(self) -> None:
        late = 12 * 3_600 - 60
        story = with_job(self.POOR, cron="59 23 * * *", tokens=900, timeout_seconds=300.0)
        story.given(claim(), at=late)
        story.when(ended(run_id(JOB, moment(late)), tokens_used=900), at=late + 120)
        kinds = [type(event) for event in story.events]
        assert kinds == [TokensSettled, RunFinished, MessageSent, AgentStatusChanged]

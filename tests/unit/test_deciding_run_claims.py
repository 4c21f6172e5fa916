"""The claims of runs on their resources: started with an attempt, renewed with its lease, ended with it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from msgspec import convert

from eventstore.events import (
    AgentRegistered,
    AgentStatusChanged,
    ConflictDetected,
    Event,
    MessageSent,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    RunAttemptFailed,
    RunFinished,
    RunRenewed,
    RunRetried,
    RunSkipped,
    RunStarted,
    TokensReserved,
)
from projections.agents import AGENTS
from projections.jobs import JOBS
from projections.operations import OPERATIONS, OperationRow
from projections.runs import RUNS, RunRow, run_id
from service.commands import (
    EndAttempt,
    FinishOperation,
    PassTime,
    RenewRun,
    RunJob,
    SetPolicy,
    StartOperation,
    StartOrchestrator,
    StopOrchestrator,
)
from service.decide.runs import LEASE_SECONDS, backoff, renewal_seconds
from tests.unit.job_stories import (
    JOB,
    OTHER,
    RUNNER,
    a_squad,
    claim,
    define,
    end_attempt,
    take_up,
    with_job,
)
from tests.unit.stories import FRESH, START, Story, given, moment

MAILBOX = {"mailbox": "info"}
RUN = run_id(JOB, moment(60))
LEASE_END = 60 + LEASE_SECONDS
RENEW = RenewRun(run_id=RUN, runner=RUNNER)
BOBS_CLAIM = StartOperation(agent="bob", action="sort", resources=MAILBOX)
LONG_WINDOW = SetPolicy(conflict_window_seconds=600, operation_timeout_seconds=600)


def scheduled(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """A squad with a job that claims a mailbox; its first tick is due at 60 s."""
    return with_job(policy, resources=MAILBOX, **fields)


def running(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """Such a squad, with the run of the first tick in progress."""
    return scheduled(policy, **fields).given(claim(), at=60)


def run(story: Story) -> RunRow:
    return story.row(RUNS, RUN)


def claim_of(story: Story) -> OperationRow:
    """The only operation in memory."""
    [operation] = story.squad.all(OPERATIONS)
    return operation


ATTEMPT_STARTED: list[type[Event]] = [OperationStarted, RunRetried]


def event_types(story: Story) -> list[type[Event]]:
    return [type(event) for event in story.events]


def is_mailbox_free(story: Story) -> bool:
    """Whether no other operation is left in memory, and bob can claim the mailbox."""
    released = not any(row.agent != "bob" for row in story.squad.all(OPERATIONS))
    story.when(BOBS_CLAIM)
    return released and story.outcome.refusal is None


class TestClaim:
    def test_run_starts_a_claim_and_names_it(self) -> None:
        story = scheduled().when(claim(), at=60)
        started = OperationStarted(
            operation_id=FRESH,
            agent="ann",
            action=JOB,
            resources=MAILBOX,
            ttl_seconds=60.0,
            blocks_until=moment(90),
            expires_at=moment(120),
        )
        assert story.events[1] == started
        assert event_types(story) == [AgentStatusChanged, OperationStarted, RunStarted]
        assert run(story).operation_id == claim_of(story).id
        assert story.caused_by(OperationStarted) == story.row(JOBS, JOB).position

    def test_claim_and_run_both_count_as_work_of_the_agent(self) -> None:
        story = running()
        assert story.row(AGENTS, "ann").operations == 2
        story.given(end_attempt(RUN), at=61)
        ann = story.row(AGENTS, "ann")
        assert (ann.operations, ann.status) == (0, "idle")

    def test_claim_of_a_job_without_agent_belongs_to_the_orchestrator(self) -> None:
        job = define(agent=None, endpoint=None, task="status_update", resources=MAILBOX)
        story = given(StartOrchestrator(), job).when(claim(), at=60)
        assert event_types(story) == [AgentRegistered, OperationStarted, RunStarted]
        assert claim_of(story).agent == "orchestrator"

    def test_claim_is_not_made_when_the_budget_denies_the_run(self) -> None:
        story = scheduled(SetPolicy(daily_tokens=1), tokens=2).when(claim(), at=60)
        assert story.row(AGENTS, "ann").operations == 0
        assert is_mailbox_free(story)

    def test_claim_blocks_other_agents(self) -> None:
        story = running().when(BOBS_CLAIM, at=61)
        assert story.refusal.code == "conflict"
        assert story.refusal.detail == "'ann' has claimed mailbox info for 'poll'"

    def test_renewing_the_run_renews_its_claim_and_its_lease(self) -> None:
        story = running().when(RENEW, at=65)
        story.then(
            OperationRenewed(
                operation_id=claim_of(story).id,
                agent="ann",
                blocks_until=moment(95),
                expires_at=moment(125),
            ),
            RunRenewed(run_id=RUN, job=JOB, lease_expires_at=moment(65 + LEASE_SECONDS)),
        )
        assert story.caused_by(OperationRenewed) == story.position_of(OperationStarted)

    @pytest.mark.parametrize(
        ("policy", "seconds"),
        [
            (SetPolicy(), 5.0),
            (SetPolicy(conflict_window_seconds=3), 1.0),
            (SetPolicy(operation_timeout_seconds=6), 2.0),
            (SetPolicy(conflict_window_seconds=1e-6), 1 / 30),
            (SetPolicy(operation_timeout_seconds=1e-6), 1 / 30),
        ],
    )
    def test_renewal_interval_fits_lease_window_and_timeout(
        self, policy: SetPolicy, seconds: float
    ) -> None:
        story = running(policy)
        assert renewal_seconds(story.squad, run(story)) == pytest.approx(seconds)

    def test_run_without_resources_is_renewed_at_the_lease_interval(self) -> None:
        story = with_job(SetPolicy(conflict_window_seconds=3)).given(claim(), at=60)
        assert renewal_seconds(story.squad, run(story)) == pytest.approx(LEASE_SECONDS / 3)


class TestRunEnd:
    @pytest.mark.parametrize(
        ("fields", "end", "at", "outcome"),
        [
            ({}, end_attempt(RUN), 61, "succeeded"),
            ({}, end_attempt(RUN, succeeded=False), 61, "failed"),
            ({}, take_up(RUN), LEASE_END, "failed"),
            ({"overlap": "cancel_other"}, claim(OTHER), 120, "cancelled"),
        ],
        ids=["succeeded", "failed", "lost", "cancelled"],
    )
    def test_end_of_the_run_finishes_its_claim(
        self, fields: Any, end: Any, at: float, outcome: str
    ) -> None:
        story = running(LONG_WINDOW, **fields)
        operation = claim_of(story).id
        story.when(end, at=at)
        finished = convert(
            {"operation_id": operation, "agent": "ann", "outcome": outcome, "tokens_used": None},
            OperationFinished,
        )
        assert finished in story.events
        [end_of_claim] = [item for item in story.recorded if item.type == "operation_finished"]
        [end_of_run] = [item for item in story.recorded if item.type == "run_finished"]
        assert end_of_claim.caused_by == end_of_run.position

    @pytest.mark.parametrize("end", [end_attempt(RUN), end_attempt(RUN, succeeded=False)])
    def test_ended_run_frees_its_resources(self, end: EndAttempt) -> None:
        assert is_mailbox_free(running(LONG_WINDOW).given(end, at=61))

    def test_agent_stays_active_while_it_has_other_work(self) -> None:
        other = StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"})
        story = running().given(other, at=61).when(end_attempt(RUN), at=65)
        assert not any(isinstance(event, AgentStatusChanged) for event in story.events)
        assert story.row(AGENTS, "ann").operations == 1

    def test_expired_claim_is_not_finished_again(self) -> None:
        story = running(SetPolicy(operation_timeout_seconds=5)).when(end_attempt(RUN), at=70)
        assert event_types(story) == [RunFinished, MessageSent, AgentStatusChanged]

    def test_cancel_other_releases_the_old_claim_before_the_new_one_starts(self) -> None:
        story = running(LONG_WINDOW, overlap="cancel_other").when(claim(OTHER), at=120)
        assert event_types(story) == [
            RunFinished,
            OperationFinished,
            MessageSent,
            OperationStarted,
            RunStarted,
        ]
        assert story.row(AGENTS, "ann").operations == 2


class TestTickConflict:
    def test_tick_is_skipped_and_names_the_holder(self) -> None:
        story = scheduled(LONG_WINDOW).given(BOBS_CLAIM, at=50)
        held, token = story.id, story.position_of(OperationStarted)
        story.when(claim(), at=60)
        story.then(
            ConflictDetected(
                operation_id=held,
                conflict_id=FRESH,
                agent="ann",
                action=JOB,
                resources=MAILBOX,
                contested=MAILBOX,
                holders=["bob"],
                holder_action="sort",
            ),
            RunSkipped(
                run_id=RUN,
                job=JOB,
                tick=moment(60),
                reason="conflict",
                detail="'bob' has claimed mailbox info for 'sort'",
            ),
        )
        assert story.caused_by(ConflictDetected) == token
        assert story.caused_by(RunSkipped) == story.position_of(ConflictDetected)
        assert story.row(AGENTS, "ann").status == "idle"

    def test_skipped_tick_reserves_no_tokens(self) -> None:
        story = scheduled(LONG_WINDOW, tokens=10).given(BOBS_CLAIM, at=50).when(claim(), at=60)
        assert TokensReserved not in event_types(story)

    def test_next_tick_runs_once_the_other_claims_window_is_over(self) -> None:
        story = scheduled().given(BOBS_CLAIM, at=50).when(claim(), at=60)
        assert RunSkipped in event_types(story)
        story.when(claim(), at=120)
        assert RunStarted in event_types(story)

    def test_conflict_of_a_job_without_agent_registers_the_orchestrator(self) -> None:
        job = define(agent=None, endpoint=None, task="status_update", resources=MAILBOX)
        story = given(StartOrchestrator(), job, BOBS_CLAIM, policy=LONG_WINDOW).when(claim(), at=60)
        assert event_types(story) == [AgentRegistered, ConflictDetected, RunSkipped]

    def test_tick_conflicts_with_a_run_of_the_same_job_under_allow_all(self) -> None:
        story = running(LONG_WINDOW, overlap="allow_all").when(claim(), at=120)
        assert story.events[-1] == RunSkipped(
            run_id=run_id(JOB, moment(120)),
            job=JOB,
            tick=moment(120),
            reason="conflict",
            detail="'ann' has claimed mailbox info for 'poll'",
        )

    def test_tick_conflicts_with_a_run_of_another_job(self) -> None:
        story = running(LONG_WINDOW).given(define("other", resources={"mailbox": "info", "order": "7"}))
        story.when(claim(name="other"), at=120)
        assert event_types(story) == [ConflictDetected, RunSkipped]

    def test_buffered_tick_is_skipped_on_a_conflict(self) -> None:
        story = running(LONG_WINDOW, overlap="buffer_one").given(claim(), at=120)
        story.given(end_attempt(RUN), at=121).given(BOBS_CLAIM).when(claim(), at=122)
        assert event_types(story) == [ConflictDetected, RunSkipped]
        assert story.row(JOBS, JOB).buffered_tick is None

    def test_other_run_goes_on_when_the_next_one_conflicts(self) -> None:
        """The job was given other resources while it ran, and another agent has claimed those."""
        story = running(LONG_WINDOW, overlap="cancel_other")
        story.given(define(overlap="cancel_other", resources={"order": "7"}))
        story.given(StartOperation(agent="bob", action="sort", resources={"order": "7"}), at=119)
        story.when(claim(), at=120)
        assert event_types(story) == [ConflictDetected, RunSkipped]
        assert story.events[1] == RunSkipped(
            run_id=run_id(JOB, moment(120)),
            job=JOB,
            tick=moment(120),
            reason="conflict",
            detail="'bob' has claimed order 7 for 'sort'",
        )
        assert story.caused_by(RunSkipped) == story.position_of(ConflictDetected)
        held = story.row(OPERATIONS, run(story).operation_id)
        assert (run(story).runner, held.state) == (RUNNER, "active")
        ann = story.row(AGENTS, "ann")
        assert (ann.operations, ann.status) == (2, "active")

    def test_conflict_names_a_later_claim_even_when_the_cancelled_run_came_first(self) -> None:
        story = running(SetPolicy(conflict_window_seconds=2), overlap="cancel_other")
        story.given(BOBS_CLAIM, at=119).when(claim(), at=120)
        assert event_types(story) == [ConflictDetected, RunSkipped]
        assert story.row(RUNS, RUN).status == "running"


@pytest.mark.parametrize("runner", [RUNNER, None])
def test_manual_run_is_refused_while_its_resources_are_claimed(runner: str | None) -> None:
    story = scheduled(LONG_WINDOW).given(BOBS_CLAIM, at=50).when(RunJob(name=JOB, runner=runner), at=55)
    assert story.refusal.code == "conflict"
    assert story.refusal.extra["conflict"]["agents"] == ["bob"]
    assert story.refusal.retry_after_seconds == 595
    assert event_types(story) == [ConflictDetected]


class TestNextAttempt:
    def test_next_attempt_makes_a_new_claim_with_a_greater_token(self) -> None:
        story = running(LONG_WINDOW, retries=1)
        first = claim_of(story)
        story.when(end_attempt(RUN, succeeded=False), at=61)
        assert event_types(story) == [RunAttemptFailed, OperationFinished]
        assert story.caused_by(OperationFinished) == story.position_of(RunAttemptFailed)
        story.when(take_up(RUN), at=65)
        assert event_types(story) == ATTEMPT_STARTED
        second = claim_of(story)
        assert run(story).operation_id == second.id
        assert second.fencing_token > first.fencing_token
        story.when(end_attempt(RUN, attempt=2, runner=OTHER), at=66)
        assert story.row(AGENTS, "ann").operations == 0
        assert is_mailbox_free(story)

    def test_resources_are_free_between_attempts(self) -> None:
        story = running(LONG_WINDOW, retries=1).given(end_attempt(RUN, succeeded=False), at=61)
        assert is_mailbox_free(story)

    def test_attempt_fails_at_once_when_its_resources_are_claimed(self) -> None:
        story = (
            running(LONG_WINDOW, retries=2)
            .given(end_attempt(RUN, succeeded=False), at=61)
            .given(BOBS_CLAIM)
        )
        story.when(take_up(RUN), at=65)
        assert event_types(story) == [ConflictDetected, RunAttemptFailed]
        assert story.events[1] == RunAttemptFailed(
            run_id=RUN,
            job=JOB,
            attempt=2,
            reason="conflict: 'bob' has claimed mailbox info for 'sort'",
            retry_at=story.now + backoff(RUN, 2),
            tokens_used=None,
        )
        assert story.caused_by(RunAttemptFailed) == story.position_of(ConflictDetected)
        assert (run(story).attempts, run(story).runner) == (2, None)
        story.when(take_up(RUN), at=65.5).then_nothing()

    def test_conflict_of_the_last_attempt_ends_the_run_without_pausing_the_job(self) -> None:
        story = running(LONG_WINDOW, retries=1, tokens=10, pause_on_failure=True)
        story.given(end_attempt(RUN, succeeded=False), at=61).given(BOBS_CLAIM).when(take_up(RUN), at=65)
        [finished] = [event for event in story.events if isinstance(event, RunFinished)]
        assert (finished.outcome, finished.attempts) == ("failed", 2)
        assert finished.reason == "conflict: 'bob' has claimed mailbox info for 'sort'"
        assert not story.row(JOBS, JOB).paused
        ann = story.row(AGENTS, "ann")
        assert (ann.operations, ann.status) == (0, "idle")

    def test_takeover_replaces_the_claim_of_the_vanished_process(self) -> None:
        story = running(LONG_WINDOW, retries=1)
        first = claim_of(story)
        story.when(take_up(RUN), at=LEASE_END)
        assert event_types(story) == [OperationFinished, OperationStarted, RunRetried]
        second = claim_of(story)
        assert second.id != first.id
        assert second.fencing_token > first.fencing_token
        assert story.row(AGENTS, "ann").operations == 2

    def test_attempt_claims_the_resources_of_the_current_definition(self) -> None:
        story = running(LONG_WINDOW, retries=1).given(end_attempt(RUN, succeeded=False), at=61)
        story.given(define(retries=1, resources={"order": "7"})).when(take_up(RUN), at=65)
        assert claim_of(story).resources == {"order": "7"}

    def test_attempt_claims_nothing_when_the_job_no_longer_names_resources(self) -> None:
        story = running(LONG_WINDOW, retries=1).given(end_attempt(RUN, succeeded=False), at=61)
        story.given(define(retries=1)).when(take_up(RUN), at=65)
        assert event_types(story) == [RunRetried]
        assert run(story).operation_id is None

    def test_run_that_may_not_be_retried_releases_its_claim(self) -> None:
        story = running(LONG_WINDOW, retries=1).given(StopOrchestrator(), at=61)
        story.when(take_up(RUN), at=LEASE_END)
        assert story.row(AGENTS, "ann").operations == 0
        assert is_mailbox_free(story)


class TestLateRenewal:
    SHORT_WINDOW = SetPolicy(conflict_window_seconds=2)
    SHORT_TIMEOUT = SetPolicy(operation_timeout_seconds=5)

    def test_late_renewal_succeeds_when_nobody_claimed_the_resources(self) -> None:
        story = running(self.SHORT_WINDOW).when(RENEW, at=64)
        assert event_types(story) == [OperationRenewed, RunRenewed]

    def test_attempt_fails_when_its_resources_were_claimed_meanwhile(self) -> None:
        story = running(self.SHORT_WINDOW, retries=1).given(BOBS_CLAIM, at=63)
        mine = run(story).operation_id or ""
        story.when(RENEW, at=64)
        assert story.refusal.code == "run_not_held"
        assert story.events[1:] == [
            RunAttemptFailed(
                run_id=RUN,
                job=JOB,
                attempt=1,
                reason="conflict: 'bob' has claimed mailbox info for 'sort'",
                retry_at=story.now + backoff(RUN, 1),
                tokens_used=None,
            ),
            OperationFinished(operation_id=mine, agent="ann", outcome="failed", tokens_used=None),
        ]
        assert event_types(story)[0] is ConflictDetected
        assert story.caused_by(RunAttemptFailed) == story.position_of(ConflictDetected)
        assert story.caused_by(OperationFinished) == story.position_of(RunAttemptFailed)
        assert claim_of(story).agent == "bob"
        story.when(end_attempt(RUN), at=64).then_refused("run_not_held")

    def test_run_ends_when_its_last_attempt_lost_the_resources(self) -> None:
        story = running(self.SHORT_WINDOW, pause_on_failure=True, tokens=10).given(BOBS_CLAIM, at=63)
        story.when(RENEW, at=64)
        [finished] = [event for event in story.events if isinstance(event, RunFinished)]
        assert (finished.outcome, finished.attempts) == ("failed", 1)
        assert finished.reason == "conflict: 'bob' has claimed mailbox info for 'sort'"
        assert story.caused_by(RunFinished) == story.position_of(ConflictDetected)
        assert not story.row(JOBS, JOB).paused
        ann = story.row(AGENTS, "ann")
        assert (ann.operations, ann.status) == (0, "idle")
        assert claim_of(story).agent == "bob"

    @pytest.mark.parametrize("checked_at", [60.0, 64.9])
    def test_attempt_fails_when_its_claim_has_expired(self, checked_at: float) -> None:
        """Even if the expiry is not recorded yet, as the state was checked a moment ago."""
        story = running(self.SHORT_TIMEOUT, retries=1).given(PassTime(), at=checked_at).when(RENEW, at=65)
        [failed] = [event for event in story.events if isinstance(event, RunAttemptFailed)]
        assert failed.reason == "its claim has ended"
        story.when(PassTime(), at=66)
        assert not list(story.squad.all(OPERATIONS))
        assert story.row(AGENTS, "ann").operations == 1

    def test_run_fails_when_somebody_has_finished_its_claim(self) -> None:
        story = running(LONG_WINDOW)
        story.given(FinishOperation(operation_id=claim_of(story).id, outcome="cancelled"), at=61)
        story.when(RENEW, at=65).then_refused("run_not_held", *story.events)
        assert event_types(story)[0] is RunFinished

    def test_success_is_accepted_even_if_the_resources_were_claimed_meanwhile(self) -> None:
        story = (
            running(self.SHORT_WINDOW)
            .given(BOBS_CLAIM, at=63)
            .when(end_attempt(RUN), at=64)
            .then_replied(status="succeeded")
        )
        assert claim_of(story).agent == "bob"


def test_manual_run_claims_its_resources_when_its_first_attempt_starts() -> None:
    story = scheduled(LONG_WINDOW).given(RunJob(name=JOB), at=30)
    id_ = story.id
    assert not list(story.squad.all(OPERATIONS))
    story.when(take_up(id_, RUNNER), at=31)
    assert event_types(story) == ATTEMPT_STARTED
    assert story.row(RUNS, id_).operation_id == claim_of(story).id


def test_manual_run_fails_when_its_resources_were_claimed_before_its_first_attempt() -> None:
    story = scheduled(LONG_WINDOW).given(RunJob(name=JOB), BOBS_CLAIM, at=30)
    [row] = story.squad.all(RUNS)
    story.when(take_up(row.id, RUNNER), at=31)
    [finished] = [event for event in story.events if isinstance(event, RunFinished)]
    assert (finished.outcome, finished.attempts) == ("failed", 1)


def test_runs_of_jobs_with_the_same_resources_never_overlap() -> None:
    """Of two jobs with the same mailbox, at most one runs at a time."""
    story = a_squad(LONG_WINDOW).given(
        define("one", resources=MAILBOX, retries=1), define("other", resources=MAILBOX, retries=1)
    )
    for seconds in range(60, 400, 20):
        story.when(claim(name="one"), claim(name="other"), at=seconds)
        active = list(story.squad.all(OPERATIONS))
        assert len(active) <= 1
        for row in list(story.squad.all(RUNS)):
            if row.runner and story.now >= (row.started_at or START) + timedelta(seconds=20):
                story.when(
                    end_attempt(row.id, succeeded=seconds % 40 == 0, attempt=row.attempts), at=seconds
                )
            elif not row.runner:
                story.when(take_up(row.id, RUNNER), at=seconds)


def test_claim_is_finished_once_when_the_next_attempt_finds_a_conflict() -> None:
    """The process vanished, its claim's window ended, and another agent claimed before the last attempt."""
    story = running(retries=1)
    resources = claim_of(story).resources
    story.given(StartOperation(agent="bob", action="answer", resources=resources), at=95)
    story.when(take_up(RUN), at=96)
    ends = [event for event in story.events if isinstance(event, OperationFinished)]
    assert len(ends) == 1
    assert [event.outcome for event in story.events if isinstance(event, RunFinished)] == ["failed"]

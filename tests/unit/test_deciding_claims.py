"""A job's resources: claimed with the run, held while it is under way, in nobody else's way after."""

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
from tests.unit.job_stories import JOB, OTHER, RUNNER, a_squad, claim, define, ended, take_up, with_job
from tests.unit.support import FRESH, START, Story, given, moment

MAILBOX = {"mailbox": "info"}
RUN = run_id(JOB, moment(60))
LEASE_END = 60 + LEASE_SECONDS
RENEW = RenewRun(run_id=RUN, runner=RUNNER)
BOB = StartOperation(agent="bob", action="sort", resources=MAILBOX)
PATIENT = SetPolicy(conflict_window_seconds=600, operation_timeout_seconds=600)


def waiting(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """A squad whose job wants a mailbox at its first tick."""
    return with_job(policy, resources=MAILBOX, **fields)


def running(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """A squad whose job has been at its mailbox since its first tick."""
    return waiting(policy, **fields).given(claim(), at=60)


def run(story: Story) -> RunRow:
    return story.row(RUNS, RUN)


def claim_of(story: Story) -> OperationRow:
    """The one operation that there is."""
    [operation] = story.squad.all(OPERATIONS)
    return operation


AGAIN: list[type[Event]] = [OperationStarted, RunRetried]


def kinds(story: Story) -> list[type[Event]]:
    return [type(event) for event in story.events]


def is_free(story: Story) -> bool:
    """Whether somebody else gets the mailbox at once, and nothing is left of the claim."""
    nothing = not any(row.agent != "bob" for row in story.squad.all(OPERATIONS))
    story.when(BOB)
    return nothing and story.outcome.refusal is None


class TestAClaim:
    def test_begins_with_the_run_and_is_named_by_it(self) -> None:
        story = waiting().when(claim(), at=60)
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
        assert kinds(story) == [AgentStatusChanged, OperationStarted, RunStarted]
        assert run(story).operation_id == claim_of(story).id
        assert story.caused_by(OperationStarted) == story.row(JOBS, JOB).position

    def test_is_work_of_the_agent_beside_the_run(self) -> None:
        story = running()
        assert story.row(AGENTS, "ann").operations == 2
        story.given(ended(RUN), at=61)
        ann = story.row(AGENTS, "ann")
        assert (ann.operations, ann.status) == (0, "idle")

    def test_of_a_job_without_an_agent_is_the_orchestrators(self) -> None:
        job = define(agent=None, endpoint=None, task="status_update", resources=MAILBOX)
        story = given(StartOrchestrator(), job).when(claim(), at=60)
        assert kinds(story) == [AgentRegistered, OperationStarted, RunStarted]
        assert claim_of(story).agent == "orchestrator"

    def test_is_not_made_where_the_tokens_do_not_suffice(self) -> None:
        story = waiting(SetPolicy(daily_tokens=1), tokens=2).when(claim(), at=60)
        assert story.row(AGENTS, "ann").operations == 0
        assert is_free(story)

    def test_keeps_others_away(self) -> None:
        story = running().when(BOB, at=61)
        assert story.refusal.code == "conflict"
        assert story.refusal.detail == "'ann' has claimed mailbox info for 'poll'"

    def test_is_renewed_with_the_lease(self) -> None:
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
    def test_is_renewed_often_enough_for_its_window(self, policy: SetPolicy, seconds: float) -> None:
        story = running(policy)
        assert renewal_seconds(story.squad, run(story)) == pytest.approx(seconds)

    def test_of_no_resources_asks_for_no_haste(self) -> None:
        story = with_job(SetPolicy(conflict_window_seconds=3)).given(claim(), at=60)
        assert renewal_seconds(story.squad, run(story)) == pytest.approx(LEASE_SECONDS / 3)


class TestTheEndOfARun:
    @pytest.mark.parametrize(
        ("fields", "end", "at", "outcome"),
        [
            ({}, ended(RUN), 61, "succeeded"),
            ({}, ended(RUN, succeeded=False), 61, "failed"),
            ({}, take_up(RUN), LEASE_END, "failed"),
            ({"overlap": "cancel_other"}, claim(OTHER), 120, "cancelled"),
        ],
        ids=["succeeded", "failed", "lost", "cancelled"],
    )
    def test_ends_the_claim(self, fields: Any, end: Any, at: float, outcome: str) -> None:
        story = running(PATIENT, **fields)
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

    @pytest.mark.parametrize("end", [ended(RUN), ended(RUN, succeeded=False)])
    def test_leaves_the_resources_to_others(self, end: EndAttempt) -> None:
        assert is_free(running(PATIENT).given(end, at=61))

    def test_leaves_the_agent_at_its_other_work(self) -> None:
        other = StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"})
        story = running().given(other, at=61).when(ended(RUN), at=65)
        assert not any(isinstance(event, AgentStatusChanged) for event in story.events)
        assert story.row(AGENTS, "ann").operations == 1

    def test_whose_claim_ran_out_before_has_nothing_to_end(self) -> None:
        story = running(SetPolicy(operation_timeout_seconds=5)).when(ended(RUN), at=70)
        assert kinds(story) == [RunFinished, MessageSent, AgentStatusChanged]

    def test_is_where_the_next_run_of_cancel_other_claims_the_same(self) -> None:
        story = running(PATIENT, overlap="cancel_other").when(claim(OTHER), at=120)
        assert kinds(story) == [
            RunFinished,
            OperationFinished,
            MessageSent,
            OperationStarted,
            RunStarted,
        ]
        assert story.row(AGENTS, "ann").operations == 2


class TestATickWhoseResourcesAreClaimed:
    def test_is_skipped_and_names_who_is_at_them(self) -> None:
        story = waiting(PATIENT).given(BOB, at=50)
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

    def test_reserves_no_tokens(self) -> None:
        story = waiting(PATIENT, tokens=10).given(BOB, at=50).when(claim(), at=60)
        assert TokensReserved not in kinds(story)

    def test_runs_once_the_window_of_the_other_is_over(self) -> None:
        story = waiting().given(BOB, at=50).when(claim(), at=60)
        assert RunSkipped in kinds(story)
        story.when(claim(), at=120)
        assert RunStarted in kinds(story)

    def test_of_a_job_without_an_agent_registers_the_orchestrator(self) -> None:
        job = define(agent=None, endpoint=None, task="status_update", resources=MAILBOX)
        story = given(StartOrchestrator(), job, BOB, policy=PATIENT).when(claim(), at=60)
        assert kinds(story) == [AgentRegistered, ConflictDetected, RunSkipped]

    def test_is_so_also_by_another_run_of_its_own_job(self) -> None:
        story = running(PATIENT, overlap="allow_all").when(claim(), at=120)
        assert story.events[-1] == RunSkipped(
            run_id=run_id(JOB, moment(120)),
            job=JOB,
            tick=moment(120),
            reason="conflict",
            detail="'ann' has claimed mailbox info for 'poll'",
        )

    def test_is_so_by_another_job(self) -> None:
        story = running(PATIENT).given(define("other", resources={"mailbox": "info", "order": "7"}))
        story.when(claim(name="other"), at=120)
        assert kinds(story) == [ConflictDetected, RunSkipped]

    def test_that_waited_for_the_run_is_skipped_likewise(self) -> None:
        story = running(PATIENT, overlap="buffer_one").given(claim(), at=120)
        story.given(ended(RUN), at=121).given(BOB).when(claim(), at=122)
        assert kinds(story) == [ConflictDetected, RunSkipped]
        assert story.row(JOBS, JOB).buffered_tick is None

    def test_lets_the_agent_rest_whose_run_it_cancelled(self) -> None:
        """The job was given other resources while it ran, and somebody else is at those."""
        story = running(PATIENT, overlap="cancel_other")
        story.given(define(overlap="cancel_other", resources={"order": "7"}))
        story.given(StartOperation(agent="bob", action="sort", resources={"order": "7"}), at=119)
        story.when(claim(), at=120)
        assert kinds(story)[-2:] == [RunSkipped, AgentStatusChanged]
        ann = story.row(AGENTS, "ann")
        assert (ann.operations, ann.status) == (0, "idle")


@pytest.mark.parametrize("runner", [RUNNER, None])
def test_a_run_by_hand_is_refused_while_somebody_is_at_the_resources(runner: str | None) -> None:
    story = waiting(PATIENT).given(BOB, at=50).when(RunJob(name=JOB, runner=runner), at=55)
    assert story.refusal.code == "conflict"
    assert story.refusal.extra["conflict"]["agents"] == ["bob"]
    assert story.refusal.retry_after_seconds == 595
    assert kinds(story) == [ConflictDetected]


class TestAnotherAttempt:
    def test_has_the_resources_to_claim_again(self) -> None:
        story = running(PATIENT, retries=1)
        first = claim_of(story)
        story.when(ended(RUN, succeeded=False), at=61)
        assert kinds(story) == [RunAttemptFailed, OperationFinished]
        assert story.caused_by(OperationFinished) == story.position_of(RunAttemptFailed)
        story.when(take_up(RUN), at=65)
        assert kinds(story) == AGAIN
        second = claim_of(story)
        assert run(story).operation_id == second.id
        assert second.fencing_token > first.fencing_token
        story.when(ended(RUN, attempt=2, runner=OTHER), at=66)
        assert story.row(AGENTS, "ann").operations == 0
        assert is_free(story)

    def test_leaves_them_to_others_meanwhile(self) -> None:
        story = running(PATIENT, retries=1).given(ended(RUN, succeeded=False), at=61)
        assert is_free(story)

    def test_has_failed_where_somebody_else_is_at_them(self) -> None:
        story = running(PATIENT, retries=2).given(ended(RUN, succeeded=False), at=61).given(BOB)
        story.when(take_up(RUN), at=65)
        assert kinds(story) == [ConflictDetected, RunAttemptFailed]
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

    def test_that_was_the_last_ends_the_run(self) -> None:
        story = running(PATIENT, retries=1, tokens=10, pause_on_failure=True)
        story.given(ended(RUN, succeeded=False), at=61).given(BOB).when(take_up(RUN), at=65)
        [finished] = [event for event in story.events if isinstance(event, RunFinished)]
        assert (finished.outcome, finished.attempts) == ("failed", 2)
        assert finished.reason == "conflict: 'bob' has claimed mailbox info for 'sort'"
        assert not story.row(JOBS, JOB).paused
        ann = story.row(AGENTS, "ann")
        assert (ann.operations, ann.status) == (0, "idle")

    def test_takes_the_claim_from_a_process_that_vanished(self) -> None:
        story = running(PATIENT, retries=1)
        first = claim_of(story)
        story.when(take_up(RUN), at=LEASE_END)
        assert kinds(story) == [OperationFinished, OperationStarted, RunRetried]
        second = claim_of(story)
        assert second.id != first.id
        assert second.fencing_token > first.fencing_token
        assert story.row(AGENTS, "ann").operations == 2

    def test_claims_what_the_job_names_by_now(self) -> None:
        story = running(PATIENT, retries=1).given(ended(RUN, succeeded=False), at=61)
        story.given(define(retries=1, resources={"order": "7"})).when(take_up(RUN), at=65)
        assert claim_of(story).resources == {"order": "7"}

    def test_claims_nothing_where_the_job_names_nothing_any_more(self) -> None:
        story = running(PATIENT, retries=1).given(ended(RUN, succeeded=False), at=61)
        story.given(define(retries=1)).when(take_up(RUN), at=65)
        assert kinds(story) == [RunRetried]
        assert run(story).operation_id is None

    def test_that_may_not_be_any_more_leaves_no_claim(self) -> None:
        story = running(PATIENT, retries=1).given(StopOrchestrator(), at=61)
        story.when(take_up(RUN), at=LEASE_END)
        assert story.row(AGENTS, "ann").operations == 0
        assert is_free(story)


class TestALateRenewal:
    SHORT = SetPolicy(conflict_window_seconds=2)
    SHORTER = SetPolicy(operation_timeout_seconds=5)

    def test_is_fine_where_nobody_came(self) -> None:
        story = running(self.SHORT).when(RENEW, at=64)
        assert kinds(story) == [OperationRenewed, RunRenewed]

    def test_after_somebody_came_in_between_fails_the_attempt(self) -> None:
        story = running(self.SHORT, retries=1).given(BOB, at=63)
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
        assert kinds(story)[0] is ConflictDetected
        assert story.caused_by(RunAttemptFailed) == story.position_of(ConflictDetected)
        assert story.caused_by(OperationFinished) == story.position_of(RunAttemptFailed)
        assert claim_of(story).agent == "bob"
        story.when(ended(RUN), at=64).then_refused("run_not_held")

    def test_in_the_last_attempt_ends_the_run(self) -> None:
        story = running(self.SHORT, pause_on_failure=True, tokens=10).given(BOB, at=63)
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
    def test_of_a_claim_that_ran_out_fails_the_attempt(self, checked_at: float) -> None:
        """Also where that it ran out is told only at the next look at the clock, a moment later."""
        story = running(self.SHORTER, retries=1).given(PassTime(), at=checked_at).when(RENEW, at=65)
        [failed] = [event for event in story.events if isinstance(event, RunAttemptFailed)]
        assert failed.reason == "its claim has ended"
        story.when(PassTime(), at=66)
        assert not list(story.squad.all(OPERATIONS))
        assert story.row(AGENTS, "ann").operations == 1

    def test_of_a_claim_that_somebody_ended_fails_the_attempt(self) -> None:
        story = running(PATIENT)
        story.given(FinishOperation(operation_id=claim_of(story).id, outcome="cancelled"), at=61)
        story.when(RENEW, at=65).then_refused("run_not_held", *story.events)
        assert kinds(story)[0] is RunFinished

    def test_too_late_to_be_asked_for_still_takes_the_word_of_success(self) -> None:
        story = running(self.SHORT).given(BOB, at=63).when(ended(RUN), at=64).replied(status="succeeded")
        assert claim_of(story).agent == "bob"


def test_a_run_that_waits_for_a_process_claims_with_its_first_attempt() -> None:
    story = waiting(PATIENT).given(RunJob(name=JOB), at=30)
    id_ = story.id
    assert not list(story.squad.all(OPERATIONS))
    story.when(take_up(id_, RUNNER), at=31)
    assert kinds(story) == AGAIN
    assert story.row(RUNS, id_).operation_id == claim_of(story).id


def test_a_run_that_waited_fails_where_somebody_came_first() -> None:
    story = waiting(PATIENT).given(RunJob(name=JOB), BOB, at=30)
    [row] = story.squad.all(RUNS)
    story.when(take_up(row.id, RUNNER), at=31)
    [finished] = [event for event in story.events if isinstance(event, RunFinished)]
    assert (finished.outcome, finished.attempts) == ("failed", 1)


def test_claims_at_work_never_overlap_in_time() -> None:
    """Of two jobs on the same mailbox one runs at a time, whichever way their ticks fall."""
    story = a_squad(PATIENT).given(
        define("one", resources=MAILBOX, retries=1), define("other", resources=MAILBOX, retries=1)
    )
    for seconds in range(60, 400, 20):
        story.when(claim(name="one"), claim(name="other"), at=seconds)
        active = list(story.squad.all(OPERATIONS))
        assert len(active) <= 1
        for row in list(story.squad.all(RUNS)):
            if row.runner and story.now >= (row.started_at or START) + timedelta(seconds=20):
                story.when(ended(row.id, succeeded=seconds % 40 == 0, attempt=row.attempts), at=seconds)
            elif not row.runner:
                story.when(take_up(row.id, RUNNER), at=seconds)


def test_a_claim_is_ended_once_though_the_next_attempt_finds_another_in_its_place() -> None:
    """The process vanished, its claim no longer blocked, and somebody else came before the last attempt."""
    story = running(retries=1)
    resources = claim_of(story).resources
    story.given(StartOperation(agent="bob", action="answer", resources=resources), at=95)
    story.when(take_up(RUN), at=96)
    ends = [event for event in story.events if isinstance(event, OperationFinished)]
    assert len(ends) == 1
    assert [event.outcome for event in story.events if isinstance(event, RunFinished)] == ["failed"]

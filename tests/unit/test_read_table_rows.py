"""The rows of the read tables, also those of things that have ended and so are not in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from eventstore import codec
from eventstore.events import (
    AgentProfileChanged,
    BudgetDayReset,
    BudgetThresholdCrossed,
    ConflictDetected,
    EmailUpdated,
    JobResumed,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    RunFinished,
    RunMissed,
    RunRenewed,
    RunSkipped,
    RunStarted,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS, BUDGETS, RESERVATIONS
from projections.emails import EMAILS
from projections.jobs import JOBS
from projections.operations import CONFLICTS, OPERATIONS, OperationRow
from projections.runs import RUNS, run_id
from projections.tasks import TASKS
from service.commands import (
    CreateTask,
    FinishOperation,
    LogEmail,
    PassTime,
    PauseJob,
    RecordUsage,
    RegisterAgent,
    ReleaseReservation,
    RenewOperation,
    RenewRun,
    ReserveTokens,
    ResumeJob,
    SettleReservation,
    StartOperation,
    UpdateEmail,
    UpdateTask,
)
from service.decide.runs import LEASE_SECONDS
from service.memory.draft import Draft
from service.memory.squad import Squad
from tests.unit.job_stories import JOB, RUNNER, claim, end_attempt, take_up, with_job
from tests.unit.stories import START, given, moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from projections.projection import Row, Table
    from service.commands import AnyCommand
    from tests.unit.stories import Story

CLAIM = StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"})
TODAY = START.date()


def rows_of(story: Story, table: Table[Any, Any]) -> list[Any]:
    """All rows of a table that the log folds to."""
    draft = Draft(Squad())
    for recorded in story.log:
        draft.fold(codec.decode(recorded), recorded)
    return list(draft.all(table))


def assert_fields(row: Row, **fields: Any) -> None:
    assert {name: getattr(row, name) for name in fields} == fields


def operation_row(story: Story) -> OperationRow:
    [row] = rows_of(story, OPERATIONS)
    assert isinstance(row, OperationRow)
    return row


class TestOperations:
    def test_active_operation_has_the_time_of_its_last_renewal(self) -> None:
        story = given(CLAIM)
        started = story.position_of(OperationStarted)
        assert_fields(operation_row(story), started_at=START, renewed_at=START, position=started)
        story.given(RenewOperation(operation_id=story.id), at=20)
        renewed = story.position_of(OperationRenewed)
        assert_fields(operation_row(story), started_at=START, renewed_at=moment(20), position=renewed)
        assert_fields(
            operation_row(story), blocks_until=moment(50), expires_at=moment(80), fencing_token=started
        )

    def test_finished_operation_has_its_outcome_and_end(self) -> None:
        story = given(CLAIM)
        story.given(FinishOperation(operation_id=story.id, outcome="failed", tokens_used=7), at=5)
        finished = story.position_of(OperationFinished)
        assert_fields(operation_row(story), state="finished", outcome="failed", tokens_used=7)
        assert_fields(operation_row(story), ended_at=moment(5), position=finished)

    def test_expired_operation_has_its_end(self) -> None:
        story = given(CLAIM).when(PassTime(), at=60)
        expired = story.position_of(OperationExpired)
        assert_fields(
            operation_row(story), state="expired", outcome=None, ended_at=moment(60), position=expired
        )


def test_conflict_has_the_refused_claim_and_the_operation_in_its_way() -> None:
    story = given(CLAIM)
    operation = story.id
    requested = {"emailId": "e-1", "customerId": "7"}
    story.when(StartOperation(agent="bob", action="quote", resources=requested), at=9)
    [row] = rows_of(story, CONFLICTS)
    assert_fields(row, agent="bob", action="quote", resources=requested, contested={"emailId": "e-1"})
    assert_fields(row, operation_id=operation, operation_agents=["ann"], operation_action="answer")
    assert_fields(row, detected_at=moment(9), position=story.position_of(ConflictDetected))


@pytest.mark.parametrize(
    ("end", "kind", "state", "used"),
    [
        (lambda id_: SettleReservation(reservation_id=id_, tokens_used=7), TokensSettled, "settled", 7),
        (lambda id_: ReleaseReservation(reservation_id=id_), TokensReleased, "released", None),
        (lambda _: PassTime(), TokensReleased, "expired", None),
    ],
    ids=["settled", "released", "expired"],
)
def test_ended_reservation_has_its_state_and_end(
    end: Callable[[str], AnyCommand], kind: Any, state: str, used: int | None
) -> None:
    story = given(ReserveTokens(agent="ann", tokens=10, ttl_seconds=30))
    story.given(end(story.id), at=30 if state == "expired" else 29)
    [row] = rows_of(story, RESERVATIONS)
    assert_fields(row, state=state, tokens=10, tokens_used=used, created_at=START)
    assert_fields(row, ended_at=story.now, position=story.position_of(kind))


def test_budget_rows_have_their_totals_and_the_position_of_the_last_change() -> None:
    story = given(ReserveTokens(agent="ann", tokens=10))
    for command, kind, used, reserved in (
        (None, TokensReserved, 0, 10),
        (SettleReservation(reservation_id=story.id, tokens_used=7), TokensSettled, 7, 0),
        (RecordUsage(agent="ann", tokens=5), TokensUsed, 12, 0),
    ):
        if command:
            story.given(command)
        for table in (BUDGET_DAYS, BUDGETS):
            [row] = rows_of(story, table)
            assert_fields(row, used=used, reserved=reserved, position=story.position_of(kind))


def test_closed_budget_day_has_its_usage_and_end() -> None:
    story = given(RecordUsage(agent="ann", tokens=60_000)).when(PassTime(), at=12 * 3_600 + 5)
    yesterday, today = sorted(rows_of(story, BUDGET_DAYS), key=lambda row: row.day)
    reset = story.position_of(BudgetDayReset)
    assert_fields(yesterday, day=TODAY, used=60_000, warned_percent=50, closed_at=story.now, position=reset)
    assert_fields(today, used=0, warned_percent=0, closed_at=None, position=reset)
    assert yesterday.position > story.position_of(BudgetThresholdCrossed)


def test_agent_has_its_latest_profile() -> None:
    story = given(RegisterAgent(name="ann", role="agent"))
    story.given(RegisterAgent(name="ann", role="clerk", url="https://ann.example", priority=4))
    [row] = rows_of(story, AGENTS)
    assert_fields(row, role="clerk", url="https://ann.example", priority=4)
    assert_fields(row, position=story.position_of(AgentProfileChanged))


def test_email_and_task_have_their_latest_state_and_its_time() -> None:
    story = given(LogEmail(gmail_message_id="g-1", from_email="eve@example.com"))
    story.given(UpdateEmail(email_id=story.id, status="archived", payload={"a": 1}), at=5)
    [email] = rows_of(story, EMAILS)
    assert_fields(email, status="archived", payload={"a": 1}, created_at=START, updated_at=moment(5))
    assert_fields(email, position=story.position_of(EmailUpdated))
    story.given(CreateTask(title="t"), at=6)
    story.given(UpdateTask(task_id=story.id, status="completed"), at=7)
    [task] = rows_of(story, TASKS)
    assert_fields(task, status="completed", created_at=moment(6), updated_at=moment(7))


def test_run_id_of_a_tick_is_the_same_in_every_version() -> None:
    assert run_id(JOB, START) == "019cae6b-6600-7105-8e61-6cd28050e022"


class TestJobs:
    def test_resumed_job_has_the_note_of_its_resumption(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), at=1)
        story.given(ResumeJob(name=JOB, note="back"), at=2)
        [row] = rows_of(story, JOBS)
        assert_fields(row, paused=False, pause_note="back", position=story.position_of(JobResumed))

    def test_running_run_has_the_lease_of_its_last_renewal(self) -> None:
        run = run_id(JOB, moment(60))
        story = with_job().given(claim(), at=60).given(RenewRun(run_id=run, runner=RUNNER), at=70)
        [row] = rows_of(story, RUNS)
        assert_fields(row, started_at=moment(60), lease_expires_at=moment(70 + LEASE_SECONDS))
        assert_fields(
            row, fencing_token=story.position_of(RunStarted), position=story.position_of(RunRenewed)
        )

    def test_run_that_fails_before_its_last_attempt_starts_has_the_reason(self) -> None:
        run, mailbox = run_id(JOB, moment(60)), {"mailbox": "info"}
        story = with_job(resources=mailbox, retries=1).given(claim(), at=60)
        story.given(end_attempt(run, succeeded=False), at=61)
        story.given(StartOperation(agent="bob", action="sort", resources=mailbox), at=62)
        story.given(take_up(run), at=65)
        [row] = rows_of(story, RUNS)
        assert_fields(
            row, status="failed", attempts=2, reason="conflict: 'bob' has claimed mailbox info for 'sort'"
        )
        assert_fields(row, runner=None, lease_expires_at=None, retry_at=None, finished_at=moment(65))
        assert row.position == story.position_of(RunFinished)

    def test_skipped_tick_has_a_run_with_the_reason(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), at=1).given(claim(), at=60)
        [row] = rows_of(story, RUNS)
        position = story.position_of(RunSkipped)
        assert_fields(row, status="skipped", reason="paused: holidays", tick=moment(60), attempts=0)
        assert_fields(
            row, started_at=None, finished_at=moment(60), fencing_token=position, position=position
        )

    def test_missed_tick_has_a_run(self) -> None:
        story = with_job().given(claim(), at=150)
        missed = [row for row in rows_of(story, RUNS) if row.status == "missed"]
        position = story.position_of(RunMissed)
        assert [row.tick for row in missed] == [moment(60)]
        assert_fields(
            missed[0], reason=None, finished_at=moment(150), fencing_token=position, position=position
        )

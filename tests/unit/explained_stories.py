"""Stories, each with the position to be explained; `tests/golden/explanations` has the explanations."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from eventstore.events import (
    AgentStatusChanged,
    AppendAbandoned,
    BudgetDayReset,
    BudgetThresholdCrossed,
    ConflictDetected,
    EmailUpdated,
    Event,
    JobPaused,
    MessageSent,
    OperationExpired,
    OperationStarted,
    OrchestratorStopped,
    PolicySet,
    RequestAnswered,
    RunFinished,
    RunMissed,
    RunSkipped,
    RunStarted,
    TickBuffered,
    TokensDenied,
    TokensReleased,
    TokensReserved,
)
from projections.runs import run_id
from service.commands import (
    AnyCommand,
    FinishOperation,
    LogEmail,
    PassTime,
    PauseJob,
    RecordUsage,
    RegisterAgent,
    RemoveJob,
    RenewOperation,
    ReserveTokens,
    RunJob,
    SendMessage,
    SetPolicy,
    SettleReservation,
    StartOperation,
    StopOrchestrator,
    UpdateEmail,
)
from service.requests import Answer, Request
from tests.unit.job_stories import JOB, OTHER, RUNNER, claim, define, end_attempt, take_up, with_job
from tests.unit.stories import Story, given, moment

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL_BUDGET = SetPolicy(daily_tokens=1_000)
RUN = run_id(JOB, moment(60))
"""The run of the first tick."""

_claims = count(1)


class Question(NamedTuple):
    """A story, and the position of the event to be explained."""

    story: Story
    position: int


def _about(story: Story, kind: type[Event]) -> Question:
    return Question(story, story.position_of(kind))


def scheduled(command: AnyCommand) -> Request:
    """A command as the scheduler sends it: the correlation id of what is done for a run is the run's id."""
    correlation = getattr(command, "run_id", None) or f"claim-{next(_claims)}"
    return Request(command, "system:scheduler", correlation)


def requested(command: AnyCommand, key: str | None = None, correlation: str = "order-66") -> Request:
    """A command as it is sent over HTTP."""
    actor = f"agent:{command.acting_agent}" if command.acting_agent else "anonymous"
    answer = Answer(201, {"sent": True})
    return Request(command, actor, correlation, key, "print", lambda _: answer)


def _claimed(**resources: str) -> Story:
    return given().when(requested(StartOperation(agent="ann", action="answer", resources=resources)))


# Claims -------------------------------------------------------------------------------------------------


def a_claim_in_the_way() -> Question:
    story = _claimed(emailId="e-1", customerId="7")
    operation = story.id
    story.given(RenewOperation(operation_id=operation), at=20)
    story.when(requested(StartOperation(agent="bob", action="quote", resources={"emailId": "e-1"})), at=29)
    story.given(RenewOperation(operation_id=operation), at=40)
    story.given(FinishOperation(operation_id=operation, outcome="succeeded", tokens_used=400), at=45)
    return _about(story, ConflictDetected)


def a_claim_in_the_way_that_is_still_open() -> Question:
    story = _claimed(emailId="e-1")
    story.when(StartOperation(agent="bob", action="quote", resources={"emailId": "e-1"}), at=10)
    return _about(story, ConflictDetected)


def a_heartbeat_that_came_too_late() -> Question:
    story = _claimed(emailId="e-1")
    first = story.id
    story.given(StartOperation(agent="bob", action="quote", resources={"emailId": "e-1"}), at=31)
    second = story.id
    story.when(RenewOperation(operation_id=first), at=40)
    story.given(FinishOperation(operation_id=second, outcome="failed"), at=80)
    return _about(story, ConflictDetected)


def a_heartbeat_that_gives_way_to_a_later_claim() -> Question:
    policy = SetPolicy(conflict_window_seconds=5, operation_timeout_seconds=60)
    story = given(policy=policy)
    story.given(StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}))
    first = story.id
    story.given(StartOperation(agent="bob", action="quote", resources={"emailId": "e-1"}), at=6)
    story.when(RenewOperation(operation_id=first), at=20)
    story.when(PassTime(), at=70)
    return _about(story, ConflictDetected)


def an_operation_that_expired() -> Question:
    story = _claimed(emailId="e-1")
    story.given(RenewOperation(operation_id=story.id), at=20)
    story.when(PassTime(), at=90)
    return _about(story, OperationExpired)


def a_claim() -> Question:
    return _about(a_claim_in_the_way().story, OperationStarted)


def a_claim_with_a_short_ttl() -> Question:
    resources = {"emailId": "e-1"}
    story = given().when(StartOperation(agent="ann", action="answer", resources=resources, ttl_seconds=5))
    story.when(PassTime(), at=6)
    return _about(story, OperationStarted)


def a_claim_with_a_short_ttl_in_the_way() -> Question:
    resources = {"emailId": "e-1"}
    story = given().when(StartOperation(agent="ann", action="answer", resources=resources, ttl_seconds=5))
    story.when(StartOperation(agent="bob", action="quote", resources=resources), at=2)
    story.when(PassTime(), at=6)
    return _about(story, ConflictDetected)


def a_claim_in_the_way_that_was_free_for_a_while() -> Question:
    story = _claimed(emailId="e-1")
    operation = story.id
    story.when(StartOperation(agent="bob", action="quote", resources={"emailId": "e-1"}), at=10)
    story.given(RenewOperation(operation_id=operation), at=50)
    story.given(FinishOperation(operation_id=operation, outcome="succeeded"), at=70)
    return _about(story, ConflictDetected)


def a_claim_in_the_way_that_was_free_for_a_while_later() -> Question:
    story = _claimed(emailId="e-1")
    operation = story.id
    story.when(StartOperation(agent="bob", action="quote", resources={"emailId": "e-1"}), at=10)
    for seconds in (20, 40, 95):
        story.given(RenewOperation(operation_id=operation), at=seconds)
    story.given(FinishOperation(operation_id=operation, outcome="succeeded"), at=100)
    return _about(story, ConflictDetected)


# Tokens -------------------------------------------------------------------------------------------------


def tokens_beyond_the_squads_budget() -> Question:
    story = given(policy=SMALL_BUDGET)
    for number in range(14):
        story.given(RecordUsage(agent=f"agent-{number % 12}", tokens=10 + number), at=number)
    story.given(ReserveTokens(agent="ann", tokens=300), at=20)
    story.given(SettleReservation(reservation_id=story.id, tokens_used=250), at=21)
    story.given(ReserveTokens(agent="ann", tokens=400), at=22)
    story.when(requested(ReserveTokens(agent="bob", tokens=280)), at=30)
    return _about(story, TokensDenied)


def tokens_beyond_an_agents_limit() -> Question:
    story = given(policy=SetPolicy(daily_tokens=1_000, agent_limits={"bob": 300}))
    story.given(RecordUsage(agent="ann", tokens=400), at=1)
    story.given(RecordUsage(agent="bob", tokens=200), at=2)
    story.when(ReserveTokens(agent="bob", tokens=101), at=30)
    return _about(story, TokensDenied)


def tokens_beyond_the_budget_of_a_whole_day() -> Question:
    return _about(
        given(policy=SMALL_BUDGET).when(ReserveTokens(agent="bob", tokens=1_001), at=30), TokensDenied
    )


def tokens_beyond_the_budget_and_the_agents_daily_limit() -> Question:
    story = given(policy=SetPolicy(daily_tokens=1_000, agent_limits={"bob": 300}))
    story.given(RecordUsage(agent="ann", tokens=800), at=1)
    story.when(ReserveTokens(agent="bob", tokens=301), at=30)
    return _about(story, TokensDenied)


def tokens_beyond_the_squads_budget_and_an_agents_limit() -> Question:
    story = given(policy=SetPolicy(daily_tokens=1_000, agent_limits={"bob": 300}))
    story.given(RecordUsage(agent="bob", tokens=250), at=1)
    story.given(ReserveTokens(agent="ann", tokens=740), at=2)
    story.when(ReserveTokens(agent="bob", tokens=60), at=30)
    return _about(story, TokensDenied)


def a_reservation_that_expired() -> Question:
    story = given(policy=SMALL_BUDGET).given(ReserveTokens(agent="ann", tokens=300, ttl_seconds=60))
    return _about(story.when(PassTime(), at=61), TokensReleased)


def a_reservation() -> Question:
    story = given(policy=SMALL_BUDGET).given(ReserveTokens(agent="ann", tokens=300))
    story.given(SettleReservation(reservation_id=story.id, tokens_used=250), at=21)
    return _about(story, TokensReserved)


def a_warning() -> Question:
    story = given(policy=SMALL_BUDGET).given(
        RecordUsage(agent="ann", tokens=400), ReserveTokens(agent="bob", tokens=90)
    )
    return _about(story.when(RecordUsage(agent="bob", tokens=200), at=5), BudgetThresholdCrossed)


def a_warning_because_the_policy_changed() -> Question:
    story = given(policy=SMALL_BUDGET).given(RecordUsage(agent="ann", tokens=400))
    return _about(story.when(SetPolicy(daily_tokens=500), at=5), BudgetThresholdCrossed)


def a_new_day() -> Question:
    story = given(policy=SMALL_BUDGET).given(
        RecordUsage(agent="ann", tokens=400), RecordUsage(agent="bob", tokens=20)
    )
    return _about(story.when(PassTime(), at=86_400), BudgetDayReset)


def a_day_that_continues_under_another_policy() -> Question:
    story = given(policy=SMALL_BUDGET).given(RecordUsage(agent="ann", tokens=400))
    return _about(story.when(SetPolicy(daily_tokens=900, reset_hour=6), at=60), BudgetDayReset)


# Ticks and runs -----------------------------------------------------------------------------------------


def a_tick_without_tokens() -> Question:
    story = with_job(SMALL_BUDGET, tokens=400).given(RecordUsage(agent="bob", tokens=700), at=30)
    return _about(story.when(scheduled(claim()), at=60), RunSkipped)


def a_tick_whose_resources_are_claimed() -> Question:
    story = with_job(resources={"mailbox": "sales"})
    story.given(StartOperation(agent="bob", action="sort", resources={"mailbox": "sales"}), at=50)
    operation = story.id
    story.when(scheduled(claim()), at=60)
    story.given(FinishOperation(operation_id=operation, outcome="succeeded"), at=65)
    return _about(story, RunSkipped)


def a_tick_without_tokens_that_would_have_cancelled_a_run() -> Question:
    story = with_job(SMALL_BUDGET, tokens=400, overlap="cancel_other").when(scheduled(claim()), at=60)
    story.given(RecordUsage(agent="bob", tokens=700), at=90).when(scheduled(claim()), at=120)
    return _about(story, RunSkipped)


def a_tick_of_a_paused_job() -> Question:
    story = with_job().given(PauseJob(name=JOB, note="holidays"), at=30)
    return _about(story.when(scheduled(claim()), at=60), RunSkipped)


def a_tick_while_the_orchestrator_is_stopped() -> Question:
    story = with_job().given(StopOrchestrator(), at=30)
    return _about(story.when(scheduled(claim()), at=60), RunSkipped)


def a_tick_while_the_job_runs() -> Question:
    story = with_job().when(scheduled(claim()), at=60).when(scheduled(claim()), at=120)
    story.when(scheduled(end_attempt(RUN)), at=130)
    return _about(story, RunSkipped)


def a_tick_while_another_is_buffered() -> Question:
    story = with_job(overlap="buffer_one")
    for tick in (60, 120, 180):
        story.when(scheduled(claim()), at=tick)
    return _about(story, RunSkipped)


def a_buffered_tick() -> Question:
    return _about(a_tick_while_another_is_buffered().story, TickBuffered)


def a_tick_missed_while_no_process_ran() -> Question:
    return _about(with_job().when(scheduled(claim()), at=125), RunMissed)


def a_later_tick_missed_while_no_process_ran() -> Question:
    """The ticks missed before it were recorded earlier."""
    story = with_job(cron=None, every_seconds=1.0, catch_up_seconds=1.0).when(scheduled(claim()), at=300)
    return _about(story.when(scheduled(claim()), at=301), RunMissed)


def a_tick_that_no_process_claimed() -> Question:
    story = with_job().given(RecordUsage(agent="bob", tokens=7), at=100)
    return _about(story.when(scheduled(claim()), at=125), RunMissed)


def a_tick_of_a_schedule_that_ended() -> Question:
    """As earlier versions recorded it."""
    missed = RunMissed(run_id=RUN, job=JOB, tick=moment(60))
    return _about(with_job().given(missed, at=61), RunMissed)


def a_tick_of_a_job_that_was_removed() -> Question:
    return _about(with_job().given(RemoveJob(name=JOB), at=65), RunSkipped)


def a_tick_of_a_job_that_the_settings_changed() -> Question:
    story = with_job()
    changed = Request(define(timezone="Europe/Berlin"), "system:service", "a start")
    return _about(story.when(changed, at=65), RunSkipped)


def a_run_that_was_lost() -> Question:
    story = with_job(retries=1).when(scheduled(claim()), at=60)
    story.when(scheduled(take_up(RUN)), at=76).when(scheduled(take_up(RUN)), at=100)
    return _about(story, RunFinished)


def a_run_that_failed() -> Question:
    story = with_job(retries=1, tokens=100).when(scheduled(claim()), at=60)
    story.when(scheduled(end_attempt(RUN, succeeded=False, tokens_used=12)), at=63)
    story.when(scheduled(take_up(RUN)), at=65)
    last = end_attempt(RUN, succeeded=False, attempt=2, runner=OTHER, reason="the agent answered 500")
    return _about(story.when(scheduled(last), at=70), RunFinished)


def a_job_that_paused_itself() -> Question:
    story = with_job(pause_on_failure=True).when(scheduled(claim()), at=60)
    return _about(story.when(scheduled(end_attempt(RUN, succeeded=False)), at=63), JobPaused)


def a_run_that_waits_for_a_process() -> Question:
    story = with_job().when(Request(RunJob(name=JOB), "cli:zoe", "typed"), at=20)
    return _about(story, RunStarted)


def a_run_that_no_process_took_up() -> Question:
    story = with_job().given(RunJob(name=JOB), at=20)
    story.when(scheduled(take_up(story.id)), at=90)
    return _about(story, RunFinished)


def a_manual_run() -> Question:
    story = with_job().when(requested(RunJob(name=JOB, runner=RUNNER), "key-1"), at=20)
    return _about(story, RunStarted)


# Effects ------------------------------------------------------------------------------------------------


def a_run() -> Question:
    return _about(a_report_of_a_run().story, RunStarted)


def a_run_of_a_buffered_tick() -> Question:
    story = a_tick_while_another_is_buffered().story.when(scheduled(end_attempt(RUN)), at=190)
    return _about(story.when(scheduled(claim()), at=191), RunStarted)


def a_report_of_a_run() -> Question:
    story = with_job().when(scheduled(claim()), at=60).when(scheduled(end_attempt(RUN)), at=63)
    return _about(story, MessageSent)


def a_draft() -> Question:
    story = with_job().given(LogEmail(gmail_message_id="g-1", from_email="zoe@example.org", subject="Hi"))
    email = story.id
    story.when(scheduled(claim()), at=60)
    taken = StartOperation(agent="ann", action="respond", resources={"emailId": email})
    story.when(Request(taken, "system:scheduler", RUN), at=61)
    drafted = UpdateEmail(
        email_id=email, status="draft_created", handled_by="ann", payload={"draft": "Hello"}
    )
    story.when(requested(drafted, correlation=RUN), at=62)
    return _about(story, EmailUpdated)


def a_message() -> Question:
    message = SendMessage(from_agent="ann", to_agent="bob", message="line one\nline two", task_id="t-1")
    return _about(given().when(requested(message, "key-1")), MessageSent)


def an_answer() -> Question:
    return _about(a_message().story, RequestAnswered)


def an_agent_that_was_only_called() -> Question:
    """What others do on its behalf is no sign of life."""
    story = with_job(tokens=10).given(RecordUsage(agent="ann", tokens=5))
    story.when(scheduled(claim()), at=60).when(scheduled(end_attempt(RUN, succeeded=False)), at=63)
    story.when(PassTime(), at=4_000)
    return _about(story, AgentStatusChanged)


def an_agent_that_fell_silent() -> Question:
    story = given().given(RegisterAgent(name="ann", role="writes"), RecordUsage(agent="ann", tokens=5))
    return _about(story.when(PassTime(), at=601), AgentStatusChanged)


def a_policy_that_changed() -> Question:
    story = given().when(
        SetPolicy(daily_tokens=500, agent_limits={"ann": 100}, timezone="Asia/Tokyo"), at=60
    )
    return _about(story, PolicySet)


def a_job_that_changed() -> Question:
    story = with_job().when(define(cron="*/5 * * * *", retries=3, agent=None), at=5)
    return Question(story, len(story.log))


def a_shutdown() -> Question:
    story = with_job().when(requested(StopOrchestrator()), at=30).when(scheduled(claim()), at=60)
    return _about(story, OrchestratorStopped)


def an_abandoned_append() -> Question:
    story = given()
    lost = given().decide([requested(SendMessage(from_agent="ann", message="hello"))])
    story.decide([], at=1, abandoned=lost)
    return _about(story, AppendAbandoned)


QUESTIONS: dict[str, Callable[[], Question]] = {
    ask.__name__: ask
    for ask in (
        a_claim_in_the_way,
        a_claim_in_the_way_that_is_still_open,
        a_heartbeat_that_came_too_late,
        a_heartbeat_that_gives_way_to_a_later_claim,
        an_operation_that_expired,
        a_claim,
        a_claim_with_a_short_ttl,
        a_claim_with_a_short_ttl_in_the_way,
        a_claim_in_the_way_that_was_free_for_a_while,
        a_claim_in_the_way_that_was_free_for_a_while_later,
        tokens_beyond_the_squads_budget,
        tokens_beyond_an_agents_limit,
        tokens_beyond_the_budget_of_a_whole_day,
        tokens_beyond_the_budget_and_the_agents_daily_limit,
        tokens_beyond_the_squads_budget_and_an_agents_limit,
        a_reservation_that_expired,
        a_reservation,
        a_warning,
        a_warning_because_the_policy_changed,
        a_new_day,
        a_day_that_continues_under_another_policy,
        a_tick_without_tokens,
        a_tick_without_tokens_that_would_have_cancelled_a_run,
        a_tick_whose_resources_are_claimed,
        a_tick_of_a_paused_job,
        a_tick_while_the_orchestrator_is_stopped,
        a_tick_while_the_job_runs,
        a_tick_while_another_is_buffered,
        a_buffered_tick,
        a_tick_missed_while_no_process_ran,
        a_later_tick_missed_while_no_process_ran,
        a_tick_that_no_process_claimed,
        a_tick_of_a_schedule_that_ended,
        a_tick_of_a_job_that_was_removed,
        a_tick_of_a_job_that_the_settings_changed,
        a_run_that_was_lost,
        a_run_that_failed,
        a_job_that_paused_itself,
        a_run_that_waits_for_a_process,
        a_run_that_no_process_took_up,
        a_manual_run,
        a_run,
        a_run_of_a_buffered_tick,
        a_report_of_a_run,
        a_draft,
        a_message,
        an_answer,
        an_agent_that_was_only_called,
        an_agent_that_fell_silent,
        a_policy_that_changed,
        a_job_that_changed,
        a_shutdown,
        an_abandoned_append,
    )
}

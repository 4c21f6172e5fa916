"""Decisions about ticks: each one starts a run, is buffered, is skipped or is missed."""

from __future__ import annotations

from typing import Any

import pytest

from eventstore.events import (
    AgentRegistered,
    AgentStatusChanged,
    DenialReason,
    Event,
    MessageSent,
    OrchestratorStopped,
    RunFinished,
    RunMissed,
    RunSkipped,
    RunStarted,
    SkipReason,
    TickBuffered,
    TokensDenied,
    TokensReleased,
    TokensReserved,
)
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS
from projections.jobs import JOBS
from projections.runs import RUNS, run_id
from service.commands import (
    Heartbeat,
    PauseJob,
    RecordUsage,
    RegisterAgent,
    ResumeJob,
    RunJob,
    SetPolicy,
    StartOrchestrator,
    StopOrchestrator,
)
from service.decide.runs import LEASE_SECONDS
from service.decide.ticks import MAX_MISSED_PER_CLAIM
from tests.unit.job_stories import JOB, OTHER, RUNNER, claim, define, end_attempt, with_job
from tests.unit.stories import FRESH, START, Story, given, moment

SMALL_BUDGET = SetPolicy(daily_tokens=1_000)
BECAME_ACTIVE = AgentStatusChanged(agent="ann", previous="idle", status="active", reason="run_started")
BECAME_IDLE = AgentStatusChanged(agent="ann", previous="active", status="idle", reason="run_ended")


def run_of(tick: float) -> str:
    return run_id(JOB, moment(tick))


def started(tick: float, at: float | None = None, **fields: Any) -> RunStarted:
    values: dict[str, Any] = {
        "run_id": run_of(tick),
        "agent": "ann",
        "manual": False,
        "runner": RUNNER,
        "attempts_allowed": 1,
        "reservation_id": None,
        "operation_id": None,
        **fields,
    }
    lease = moment((tick if at is None else at) + LEASE_SECONDS)
    return RunStarted(job=JOB, tick=moment(tick), lease_expires_at=lease, **values)


def missed(tick: float) -> RunMissed:
    return RunMissed(run_id=run_of(tick), job=JOB, tick=moment(tick))


def skipped(tick: float, reason: SkipReason, detail: str) -> RunSkipped:
    return RunSkipped(run_id=run_of(tick), job=JOB, tick=moment(tick), reason=reason, detail=detail)


def reserved(tokens: int, expires_at: float) -> TokensReserved:
    return TokensReserved(
        day=START.date(), reservation_id=FRESH, agent="ann", tokens=tokens, expires_at=moment(expires_at)
    )


def denied(tokens: int, remaining: int, reason: DenialReason = "budget_exhausted") -> TokensDenied:
    return TokensDenied(day=START.date(), agent="ann", tokens=tokens, reason=reason, remaining=remaining)


def running(policy: SetPolicy | None = None, **fields: Any) -> Story:
    """A squad with the run of its job's first tick in progress."""
    return with_job(policy, **fields).given(claim(), at=60)


class TestTick:
    def test_tick_starts_a_run_and_makes_its_agent_active(self) -> None:
        story = with_job().when(claim(), at=60).then(BECAME_ACTIVE, started(60))
        assert story.row(AGENTS, "ann").operations == 1

    def test_run_names_the_jobs_definition_as_its_cause(self) -> None:
        story = with_job()
        position = story.row(JOBS, JOB).position
        story.when(claim(), at=60)
        assert story.caused_by(RunStarted) == position

    def test_tick_cannot_be_claimed_before_its_time(self) -> None:
        with_job().when(claim(), at=59.999999).then_nothing()

    def test_first_process_to_claim_the_tick_gets_it(self) -> None:
        story = with_job().when(claim(RUNNER), claim(OTHER), at=60)
        story.then(BECAME_ACTIVE, started(60))
        story.when(claim(OTHER), at=61).then_nothing()

    def test_run_id_is_the_same_whichever_process_claims_the_tick(self) -> None:
        ids = {with_job().given(claim(runner), at=60).events[-1].stream for runner in (RUNNER, OTHER)}
        assert ids == {f"run-{run_of(60)}"}

    def test_tick_is_delayed_by_its_jitter(self) -> None:
        story = with_job(jitter_seconds=30.0)
        story.when(claim(), at=60).then_nothing()
        story.when(claim(), at=90).then(BECAME_ACTIVE, started(60, at=90))

    def test_run_of_a_job_without_agent_makes_nobody_active(self) -> None:
        story = with_job(agent=None, endpoint=None, task="status_update")
        story.when(claim(), at=60).then(started(60, agent=None))

    @pytest.mark.parametrize(
        ("tokens", "kinds"), [(0, [RunStarted]), (5, [AgentRegistered, TokensReserved, RunStarted])]
    )
    def test_orchestrator_is_registered_when_a_job_without_agent_takes_tokens(
        self, tokens: int, kinds: list[type[Event]]
    ) -> None:
        nobodys = define(agent=None, endpoint=None, task="status_update", tokens=tokens)
        story = given(StartOrchestrator(), nobodys).when(claim(), at=60)
        assert [type(event) for event in story.events] == kinds

    def test_run_has_one_attempt_more_than_the_job_has_retries(self) -> None:
        with_job(retries=2).when(claim(), at=60).then(BECAME_ACTIVE, started(60, attempts_allowed=3))

    def test_disabled_job_has_no_ticks(self) -> None:
        with_job(enabled=False).when(claim(), at=600).then_nothing()

    def test_claim_of_an_unknown_job_records_nothing(self) -> None:
        with_job().when(claim(name="x"), at=60).then_nothing()

    def test_cron_expression_that_matches_no_date_has_no_ticks(self) -> None:
        with_job(cron="0 0 */31 2 MON#5").when(claim(), at=60).then_nothing()


class TestCatchUp:
    def test_tick_still_runs_at_the_end_of_its_catch_up_time(self) -> None:
        story = with_job(cron="5 * * * *", catch_up_seconds=90.0)
        story.when(claim(), at=390).then(BECAME_ACTIVE, started(300, at=390))

    def test_tick_is_missed_after_its_catch_up_time(self) -> None:
        story = with_job(cron="5 * * * *", catch_up_seconds=90.0)
        story.when(claim(), at=390.000001).then(missed(300))
        assert story.caused_by(RunMissed) == story.row(JOBS, JOB).position

    def test_claim_records_all_missed_ticks_and_runs_the_one_in_time(self) -> None:
        """After ten minutes of downtime, nine ticks are more than a minute late; the tenth is just due."""
        story = with_job().when(claim(), at=601)
        missed_ticks = [missed(tick) for tick in range(60, 541, 60)]
        story.then(*missed_ticks, BECAME_ACTIVE, started(600, at=601))

    def test_claim_records_a_limited_number_of_missed_ticks_and_the_next_continues(self) -> None:
        story = with_job(cron=None, every_seconds=1.0, catch_up_seconds=1.0)
        downtime = MAX_MISSED_PER_CLAIM + 100
        story.when(claim(), at=downtime)
        story.then(*(missed(tick) for tick in range(1, MAX_MISSED_PER_CLAIM + 1)))
        story.when(claim(), at=downtime)
        rest = [missed(tick) for tick in range(MAX_MISSED_PER_CLAIM + 1, downtime - 1)]
        story.then(*rest, BECAME_ACTIVE, started(downtime - 1, at=downtime))

    def test_claim_that_records_the_maximum_of_missed_ticks_starts_nothing(self) -> None:
        story = with_job(cron=None, every_seconds=1.0, catch_up_seconds=1.0)
        downtime = MAX_MISSED_PER_CLAIM + 1.5
        story.when(claim(), at=downtime)
        assert len(story.events) == MAX_MISSED_PER_CLAIM
        story.when(claim(), at=downtime).then(BECAME_ACTIVE, started(MAX_MISSED_PER_CLAIM + 1, at=downtime))

    def test_each_claim_decides_one_tick_within_the_catch_up_time(self) -> None:
        story = with_job(catch_up_seconds=300.0).when(claim(), claim(), claim(), claim(), at=180)
        overlap = f"the run of {moment(60):%Y-%m-%d %H:%M:%S}Z is in progress"
        story.then(
            BECAME_ACTIVE,
            started(60, at=180),
            skipped(120, "overlap", overlap),
            skipped(180, "overlap", overlap),
        )


class TestSkipping:
    def test_skip_during_a_shutdown_names_it_as_the_cause(self) -> None:
        story = with_job().given(StopOrchestrator(), at=1).when(claim(), at=60)
        story.then(skipped(60, "shut_down", "the orchestrator is shut down"))
        assert story.caused_by(RunSkipped) == story.position_of(OrchestratorStopped)

    def test_skip_before_the_first_start_names_the_job_as_the_cause(self) -> None:
        story = given(RegisterAgent(name="ann", role="agent"), define()).when(claim(), at=60)
        story.then(skipped(60, "shut_down", "the orchestrator is shut down"))
        assert story.caused_by(RunSkipped) == story.row(JOBS, JOB).position

    @pytest.mark.parametrize(("note", "detail"), [("holidays", "holidays"), (None, "the job is paused")])
    def test_skip_during_a_pause_gives_its_note_as_the_detail(self, note: str | None, detail: str) -> None:
        story = with_job().given(PauseJob(name=JOB, note=note), at=1).when(claim(), at=60)
        story.then(skipped(60, "paused", detail))
        assert story.caused_by(RunSkipped) == story.row(JOBS, JOB).position

    def test_ticks_run_again_after_the_pause(self) -> None:
        story = with_job().given(PauseJob(name=JOB), claim(), at=60).given(ResumeJob(name=JOB), at=61)
        story.when(claim(), at=120).then(BECAME_ACTIVE, started(120))

    def test_skip_on_overlap_names_the_run_in_progress(self) -> None:
        story = running().when(claim(), at=120)
        story.then(skipped(120, "overlap", "the run of 2026-03-02 12:01:00Z is in progress"))
        assert story.caused_by(RunSkipped) == story.position_of(RunStarted)

    def test_skip_for_lack_of_tokens_names_the_denial_as_the_cause(self) -> None:
        story = with_job(SMALL_BUDGET, tokens=600).given(RecordUsage(agent="ann", tokens=500), at=1)
        story.given(Heartbeat(agent="ann", status="idle"), at=1).when(claim(), at=60)
        story.then(denied(600, 500), skipped(60, "budget", "600 tokens are needed, 500 remain"))
        assert story.caused_by(RunSkipped) == story.position_of(TokensDenied)
        assert story.row(AGENTS, "ann").status == "idle"
        assert story.row(AGENTS, "ann").operations == 0

    def test_skip_with_an_overspent_budget_says_that_none_remain(self) -> None:
        story = with_job(SMALL_BUDGET, tokens=600).given(RecordUsage(agent="bob", tokens=1_500), at=1)
        story.when(claim(), at=60)
        story.then(denied(600, -500), skipped(60, "budget", "600 tokens are needed, 0 remain"))

    def test_skip_at_the_agents_limit_says_how_much_remains_for_the_agent(self) -> None:
        story = with_job(SetPolicy(agent_limits={"ann": 100}), tokens=600).when(claim(), at=60)
        story.then(
            denied(600, 100, "agent_limit_reached"),
            skipped(60, "budget", "600 tokens are needed, 100 remain for 'ann'"),
        )
        assert story.caused_by(TokensDenied) == story.squad.policy.position

    def test_denial_for_a_job_without_agent_registers_the_orchestrator(self) -> None:
        story = given(StartOrchestrator(), policy=SetPolicy(daily_tokens=1))
        story.given(define(agent=None, endpoint=None, task="status_update", tokens=2)).when(claim(), at=60)
        kinds: list[type[Event]] = [type(event) for event in story.events]
        assert kinds == [AgentRegistered, TokensDenied, RunSkipped]


class TestTokens:
    def test_reservation_lasts_as_long_as_all_attempts_may_take(self) -> None:
        """Three attempts, each of 30 s with a lease of 15 s and a margin of 600 s for waits: 1,935 s."""
        story = with_job(SMALL_BUDGET, tokens=600, retries=2).when(claim(), at=60)
        reservation = story.events[1]
        assert isinstance(reservation, TokensReserved)
        story.then(
            BECAME_ACTIVE,
            reserved(600, 60 + 1_935),
            started(60, attempts_allowed=3, reservation_id=FRESH),
        )
        assert story.row(RUNS, run_of(60)).reservation_id in {row.id for row in _reservations(story)}
        assert story.row(BUDGET_DAYS, START.date()).reserved == 600

    def test_reservations_of_several_jobs_never_exceed_the_budget(self) -> None:
        story = with_job(SMALL_BUDGET, tokens=600).given(define("other", tokens=600))
        story.when(claim(), claim(name="other"), at=60)
        day = story.row(BUDGET_DAYS, START.date())
        assert (day.reserved, day.total) == (600, 1_000)
        assert isinstance(story.events[-1], RunSkipped)


def _reservations(story: Story) -> list[Any]:
    return list(story.squad.tables["reservations"].values())


class TestBufferOne:
    def test_next_tick_is_buffered_and_later_ones_are_skipped(self) -> None:
        story = running(overlap="buffer_one")
        story.when(claim(), at=120).then(TickBuffered(job=JOB, tick=moment(120)))
        story.when(claim(), at=180)
        story.then(skipped(180, "overlap", "the tick of 2026-03-02 12:02:00Z is already waiting"))

    def test_buffered_tick_runs_as_soon_as_the_run_ends(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120).given(end_attempt(run_of(60)), at=130)
        story.when(claim(), at=130).then(BECAME_ACTIVE, started(120, at=130))
        assert story.row(JOBS, JOB).buffered_tick is None
        story.when(claim(), at=131).then_nothing()

    def test_buffered_tick_runs_however_long_it_has_waited(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.given(claim(), at=180).given(end_attempt(run_of(60)), at=200)
        story.when(claim(), at=200).then(BECAME_ACTIVE, started(120, at=200))

    def test_buffered_tick_is_skipped_when_the_job_was_paused_meanwhile(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.given(PauseJob(name=JOB), end_attempt(run_of(60)), at=130)
        story.when(claim(), at=130).then(skipped(120, "paused", "the job is paused"))
        assert story.row(JOBS, JOB).buffered_tick is None

    def test_buffered_tick_runs_when_the_pause_is_already_over(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.given(PauseJob(name=JOB), ResumeJob(name=JOB), end_attempt(run_of(60)), at=130)
        story.when(claim(), at=130).then(BECAME_ACTIVE, started(120, at=130))

    def test_buffered_tick_is_decided_before_the_due_one(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120).given(end_attempt(run_of(60)), at=180)
        story.when(claim(), claim(), claim(), at=180)
        story.then(BECAME_ACTIVE, started(120, at=180), TickBuffered(job=JOB, tick=moment(180)))


class TestCancelOther:
    def test_next_tick_cancels_the_run_and_its_agent_stays_active(self) -> None:
        story = running(overlap="cancel_other").when(claim(), at=120)
        reason = "cancelled by the tick of 2026-03-02 12:02:00Z"
        story.then(
            RunFinished(
                run_id=run_of(60),
                job=JOB,
                agent="ann",
                outcome="failed",
                attempts=1,
                reason=reason,
                tokens_used=None,
                answered=False,
            ),
            MessageSent(
                message_id=FRESH,
                agent="orchestrator",
                to_agent="orchestrator",
                message=f"poll was {reason}",
                task_id=None,
                data={"job": JOB, "run_id": run_of(60), "status": "failed"},
            ),
            started(120),
        )
        assert story.caused_by(MessageSent) == story.position_of(RunFinished)
        assert story.row(AGENTS, "ann").operations == 1
        assert story.row(AGENTS, "ann").status == "active"

    def test_message_is_caused_by_the_cancellation_even_after_missed_ticks(self) -> None:
        story = running(overlap="cancel_other").when(claim(), at=599)
        kinds = [type(event) for event in story.events]
        assert kinds == [*[RunMissed] * 7, RunFinished, MessageSent, RunStarted]
        assert story.caused_by(MessageSent) == story.position_of(RunFinished)

    def test_cancellation_does_not_pause_the_job(self) -> None:
        story = running(overlap="cancel_other", pause_on_failure=True).given(claim(), at=120)
        assert not story.row(JOBS, JOB).paused

    def test_next_run_can_reserve_the_tokens_that_the_cancelled_one_releases(self) -> None:
        story = running(SMALL_BUDGET, overlap="cancel_other", tokens=600).when(claim(), at=120)
        kinds = [type(event) for event in story.events]
        assert kinds == [TokensReleased, RunFinished, MessageSent, TokensReserved, RunStarted]
        first = next(item for item in story.log if item.type == TokensReserved.type)
        assert story.caused_by(TokensReleased) == first.position
        assert story.row(BUDGET_DAYS, START.date()).reserved == 600

    def test_tokens_released_for_yesterday_cannot_be_reserved_today(self) -> None:
        midnight = 12 * 3_600
        story = with_job(SMALL_BUDGET, cron="0,59 0,23 * * *", overlap="cancel_other", tokens=600)
        story.given(claim(), at=midnight - 60).given(RecordUsage(agent="bob", tokens=500), at=midnight + 1)
        story.when(claim(), at=midnight + 2)
        kinds = [type(event) for event in story.events if not isinstance(event, AgentStatusChanged)]
        assert kinds == [TokensDenied, RunSkipped]
        assert story.row(RUNS, run_of(midnight - 60)).status == "running"

    def test_other_run_goes_on_when_the_budget_denies_the_next_one(self) -> None:
        story = running(SMALL_BUDGET, overlap="cancel_other", tokens=600)
        story.given(RecordUsage(agent="orchestrator", tokens=450), at=61).when(claim(), at=120)
        too_few = "600 tokens are needed, 550 remain, including what a cancellation would release"
        story.then(denied(600, -50), skipped(120, "budget", too_few))
        assert story.caused_by(RunSkipped) == story.position_of(TokensDenied)
        run, ann = story.row(RUNS, run_of(60)), story.row(AGENTS, "ann")
        assert (run.status, run.runner) == ("running", RUNNER)
        assert (ann.operations, ann.status) == (1, "active")
        assert story.row(BUDGET_DAYS, START.date()).reserved == 600

    def test_later_tick_cancels_the_run_once_the_budget_suffices(self) -> None:
        story = running(SMALL_BUDGET, overlap="cancel_other", tokens=600)
        story.given(RecordUsage(agent="orchestrator", tokens=450), claim(), at=120)
        story.given(SetPolicy(daily_tokens=1_050), at=121).when(claim(), at=180)
        assert [event.run_id for event in story.events if isinstance(event, RunFinished)] == [run_of(60)]
        assert story.row(RUNS, run_of(180)).status == "running"

    def test_next_run_can_reserve_the_tokens_of_another_agents_cancelled_run(self) -> None:
        story = running(SMALL_BUDGET, overlap="cancel_other", tokens=600)
        story.given(RegisterAgent(name="bob", role="agent"))
        story.given(define(overlap="cancel_other", tokens=600, agent="bob")).when(claim(), at=120)
        [reserved] = [event for event in story.events if isinstance(event, TokensReserved)]
        assert (reserved.agent, reserved.tokens) == ("bob", 600)

    def test_orchestrator_becomes_active_once_however_many_runs_are_cancelled(self) -> None:
        story = running(overlap="allow_all").given(claim(), at=120).given(define(overlap="cancel_other"))
        story.given(Heartbeat(agent="orchestrator", status="offline")).when(claim(), at=180)
        became_active = AgentStatusChanged(
            agent="orchestrator", previous="offline", status="active", reason="activity"
        )
        assert [event for event in story.events if isinstance(event, AgentStatusChanged)] == [became_active]
        assert story.row(AGENTS, "ann").operations == 1


class TestAllowAll:
    def test_each_tick_runs_beside_the_others(self) -> None:
        story = running(overlap="allow_all").when(claim(), at=120).then(started(120))
        assert story.row(AGENTS, "ann").operations == 2
        assert len(list(story.squad.all(RUNS))) == 2

    def test_next_tick_runs_even_if_one_is_still_buffered_from_buffer_one(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120).given(define(overlap="allow_all"))
        story.when(claim(), at=180).then(started(180))

    def test_change_to_cancel_other_cancels_all_runs_oldest_first(self) -> None:
        ticks = range(60, 480, 60)
        story = running(overlap="allow_all")
        for tick in ticks[1:]:
            story.given(claim(), at=tick)
        story.given(define(overlap="cancel_other")).when(claim(), at=480)
        finished = [event.run_id for event in story.events if isinstance(event, RunFinished)]
        assert finished == [run_of(tick) for tick in ticks]


RUN_NOW = RunJob(name=JOB, runner=RUNNER)


class TestManualRun:
    def test_manual_run_starts_outside_the_schedule(self) -> None:
        story = with_job().when(RUN_NOW, at=30)
        story.then(BECAME_ACTIVE, started(30, run_id=FRESH, manual=True))
        story.then_replied(job=JOB, tick=moment(30), status="running", attempts=1)
        assert story.row(JOBS, JOB).ticked_until == START

    def test_manual_run_does_not_replace_the_tick_at_the_same_moment(self) -> None:
        story = with_job().given(RUN_NOW, at=60)
        story.given(end_attempt(story.id), at=60).when(claim(), at=60).then(BECAME_ACTIVE, started(60))

    @pytest.mark.parametrize("fields", [{}, {"enabled": False}])
    def test_manual_run_starts_even_if_the_job_is_paused_or_disabled(self, fields: dict[str, Any]) -> None:
        story = with_job(**fields).given(PauseJob(name=JOB), at=1)
        story.when(RUN_NOW, at=30).then(BECAME_ACTIVE, started(30, run_id=FRESH, manual=True))

    @pytest.mark.parametrize("overlap", ["skip", "buffer_one", "cancel_other"])
    def test_manual_run_is_refused_with_the_id_of_the_run_in_progress(self, overlap: str) -> None:
        story = running(overlap=overlap).when(RUN_NOW, at=61).then_refused("job_running")
        assert story.refusal.extra == {"run_id": run_of(60)}

    def test_manual_run_starts_beside_another_one_under_allow_all(self) -> None:
        story = running(overlap="allow_all").when(RUN_NOW, at=61)
        story.then(started(61, run_id=FRESH, manual=True))

    def test_tick_is_skipped_while_a_manual_run_is_in_progress(self) -> None:
        story = with_job().given(RUN_NOW, at=59).when(claim(), at=60)
        story.then(skipped(60, "overlap", "the run of 2026-03-02 12:00:59Z is in progress"))

    def test_manual_run_before_the_first_start_is_refused(self) -> None:
        story = given(RegisterAgent(name="ann", role="agent"), define())
        story.when(RunJob(name=JOB, runner=RUNNER)).then_refused("orchestrator_stopped")

    def test_manual_run_during_a_shutdown_is_refused(self) -> None:
        with_job().given(StopOrchestrator()).when(RUN_NOW, at=1).then_refused("orchestrator_stopped")

    @pytest.mark.parametrize(
        ("policy", "code", "used"),
        [
            (SetPolicy(daily_tokens=600), "budget_exhausted", 1),
            (SetPolicy(agent_limits={"ann": 600}), "agent_limit_reached", 1),
            (SetPolicy(daily_tokens=599), "budget_exhausted", 0),
            (SetPolicy(agent_limits={"ann": 599}), "agent_limit_reached", 0),
        ],
    )
    def test_manual_run_beyond_the_budget_is_refused_until_the_next_day(
        self, policy: SetPolicy, code: DenialReason, used: int
    ) -> None:
        story = with_job(policy, tokens=600)
        if used:
            story.given(RecordUsage(agent="ann", tokens=used))
        story.when(RUN_NOW, at=1)
        story.then_refused(code, denied(600, 599, code))
        assert story.refusal.extra["remaining"] == 599
        assert story.refusal.retry_after_seconds == 12 * 3_600 - 1

    def test_manual_run_reserves_its_tokens(self) -> None:
        story = with_job(SMALL_BUDGET, tokens=600).when(RUN_NOW, at=1)
        assert [type(event) for event in story.events] == [AgentStatusChanged, TokensReserved, RunStarted]

"""Decisions about jobs: defining, changing, pausing and removing them, and what is due."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from eventstore.events import (
    AgentStatusChanged,
    Event,
    JobDefined,
    JobPaused,
    JobRemoved,
    JobResumed,
    RunMissed,
    RunSkipped,
    RunStarted,
    SkipReason,
    TickBuffered,
)
from projections.jobs import JOBS
from projections.runs import RUNS, run_id
from service import views
from service.commands import (
    DefineJob,
    PauseJob,
    RegisterAgent,
    RemoveJob,
    ResumeJob,
    RunJob,
    StopOrchestrator,
    WithdrawJob,
)
from service.decide.jobs import due_jobs
from service.decide.ticks import MAX_CLOSED_AT_ONCE
from service.http import seed_views
from service.http.json import dumps, loads
from service.schedule import upcoming_ticks
from tests.unit.job_stories import (
    JOB,
    OTHER,
    RUNNER,
    a_squad,
    claim,
    define,
    definition,
    end_attempt,
    take_up,
    with_job,
)
from tests.unit.stories import START, Story, moment

if TYPE_CHECKING:
    from service.commands import AnyCommand
    from service.schedule import Schedule


def defined(source: Any = "settings", **fields: Any) -> JobDefined:
    return JobDefined(job=JOB, source=source, definition=definition(**fields))


def missed(tick: float) -> RunMissed:
    return RunMissed(run_id=run_id(JOB, moment(tick)), job=JOB, tick=moment(tick))


def skipped(tick: float, detail: str, reason: SkipReason = "overlap") -> RunSkipped:
    at = moment(tick)
    return RunSkipped(run_id=run_id(JOB, at), job=JOB, tick=at, reason=reason, detail=detail)


def ended_before(tick: float, how: str = "rescheduled") -> RunSkipped:
    return skipped(tick, f"the job is being {how}", "schedule_ended")


def running(**fields: Any) -> Story:
    """A squad with the run of its job's first tick in progress."""
    return with_job(**fields).given(claim(), at=60)


class TestDefining:
    def test_definition_adds_a_job_to_the_schedule(self) -> None:
        a_squad().when(define()).then(defined()).then_replied(name=JOB)

    def test_same_definition_changes_nothing(self) -> None:
        story = with_job()
        story.when(define(), at=1).then_nothing().then_replied(position=story.position_of(JobDefined))

    def test_redefinition_records_the_whole_job_and_names_the_old_one_as_cause(self) -> None:
        story = with_job()
        first = story.position_of(JobDefined)
        story.when(define(timeout_seconds=5.0), at=1).then(defined(timeout_seconds=5.0))
        assert story.caused_by(JobDefined) == first

    def test_job_of_an_unknown_agent_is_refused(self) -> None:
        a_squad().when(define(agent="nobody")).then_refused("agent_not_found")

    def test_job_that_calls_no_agent_needs_none(self) -> None:
        fields: dict[str, Any] = {"agent": None, "endpoint": None, "task": "status_update"}
        a_squad().when(define(**fields)).then(defined(**fields))

    def test_job_removed_in_the_same_batch_can_be_defined_again(self) -> None:
        story = with_job().when(RemoveJob(name=JOB), define(), at=1)
        story.then(JobRemoved(job=JOB, source="api"), defined())

    def test_definition_after_removal_continues_the_jobs_stream(self) -> None:
        story = with_job().given(RemoveJob(name=JOB), at=1).when(define(), at=2).then(defined())
        assert story.recorded[-1].version == 3


class TestPrecedence:
    @pytest.mark.parametrize("earlier", ["settings", "api"])
    def test_default_does_not_replace_an_explicit_definition(self, earlier: str) -> None:
        story = with_job(source=earlier, timeout_seconds=5.0)
        story.when(define(source="default"), at=1).then_nothing()

    def test_changed_default_replaces_the_old_default(self) -> None:
        story = with_job(source="default", timeout_seconds=5.0)
        story.when(define(source="default"), at=1).then(defined("default"))

    @pytest.mark.parametrize("earlier", ["default", "api"])
    def test_settings_replace_defaults_and_definitions_by_the_api(self, earlier: str) -> None:
        story = with_job(source=earlier)
        story.when(define(timeout_seconds=5.0), at=1).then(defined(timeout_seconds=5.0))

    def test_new_schedule_counts_from_the_moment_it_is_defined(self) -> None:
        story = with_job(cron="0 * * * *").given(define(), at=600).when(claim(), at=660)
        assert [type(event) for event in story.events] == [AgentStatusChanged, RunStarted]

    @pytest.mark.parametrize("earlier", ["default", "settings"])
    def test_api_replaces_everything(self, earlier: str) -> None:
        story = with_job(source=earlier)
        story.when(define(source="api", retries=2), at=1).then(defined("api", retries=2))


class TestExplicitRemoval:
    """A default job that was removed by hand stays removed until it is defined explicitly or withdrawn."""

    def removed(self, source: Any = "default") -> Story:
        return with_job(source=source).given(RemoveJob(name=JOB), at=1)

    @pytest.mark.parametrize("source", ["default", "settings", "api"])
    def test_removed_job_is_not_brought_back_by_a_default(self, source: Any) -> None:
        story = self.removed(source)
        story.when(define(source="default"), at=2).then_nothing()
        story.then_replied(position=story.position_of(JobRemoved))
        assert story.squad.rows(JOBS).get(JOB) is None
        assert not story.squad.versions.keys() & {f"job-{JOB}"}

    @pytest.mark.parametrize("source", ["settings", "api"])
    def test_removed_job_comes_back_when_it_is_defined_explicitly(self, source: Any) -> None:
        self.removed().when(define(source=source), at=2).then(defined(source))

    def test_removed_job_comes_back_by_default_after_the_settings_withdrew_it(self) -> None:
        story = self.removed().when(WithdrawJob(name=JOB), at=2)
        story.then(JobRemoved(job=JOB, source="settings"))
        story.when(WithdrawJob(name=JOB), at=3).then_refused("job_not_found")
        story.when(define(source="default"), at=4).then(defined("default"))

    @pytest.mark.parametrize("source", ["settings", "api"])
    def test_withdrawing_a_removed_job_records_no_missed_ticks(self, source: Any) -> None:
        story = self.removed(source).when(WithdrawJob(name=JOB), at=300)
        story.then(JobRemoved(job=JOB, source="settings"))

    def test_job_withdrawn_by_the_settings_comes_back_by_default(self) -> None:
        story = with_job(source="default").when(WithdrawJob(name=JOB), at=1)
        story.then(JobRemoved(job=JOB, source="settings"))
        story.when(define(source="default"), at=2).then(defined("default"))

    def test_settings_do_not_withdraw_a_job_defined_by_the_api(self) -> None:
        story = with_job(source="api").when(WithdrawJob(name=JOB), at=1).then_nothing()
        assert not story.row(JOBS, JOB).removed

    def test_withdrawing_an_unknown_job_is_refused(self) -> None:
        a_squad().when(WithdrawJob(name="x")).then_refused("job_not_found")

    def test_default_does_not_bring_back_a_job_removed_in_the_same_batch(self) -> None:
        story = with_job(source="default").when(RemoveJob(name=JOB), define(source="default"), at=1)
        story.then(JobRemoved(job=JOB, source="api"))


class TestJobBehind:
    """More ticks are due than one decision records."""

    EVERY_SECOND: ClassVar[dict[str, Any]] = {"cron": None, "every_seconds": 1.0, "catch_up_seconds": 1.0}
    CHANGES: ClassVar[list[AnyCommand]] = [
        RemoveJob(name=JOB),
        WithdrawJob(name=JOB),
        define(**EVERY_SECOND, enabled=False),
        define(**{**EVERY_SECOND, "every_seconds": 2.0}),
    ]

    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
    def test_change_is_refused_until_every_due_tick_has_an_outcome(self, change: AnyCommand) -> None:
        story = with_job(**self.EVERY_SECOND)
        downtime = 2 * MAX_CLOSED_AT_ONCE + 100
        recorded: list[Event] = []
        for _ in range(2):
            story.when(change, at=downtime)
            assert story.refusal.code == "job_behind"
            assert story.refusal.retry_after_seconds == 1
            assert len(story.events) == MAX_CLOSED_AT_ONCE
            recorded += story.events
        story.when(change, at=downtime)
        assert story.outcome.refusal is None
        recorded += story.events[:-1]
        assert recorded[:-2] == [missed(tick) for tick in range(1, downtime - 1)]
        in_time = [event.tick for event in recorded[-2:] if isinstance(event, RunSkipped)]
        assert in_time == [moment(downtime - 1), moment(downtime)]
        assert isinstance(story.events[-1], JobRemoved | JobDefined)

    def test_job_is_not_behind_with_as_many_due_ticks_as_one_decision_records(self) -> None:
        story = with_job(**self.EVERY_SECOND).when(RemoveJob(name=JOB), at=MAX_CLOSED_AT_ONCE)
        assert len(story.events) == MAX_CLOSED_AT_ONCE + 1
        assert isinstance(story.events[-1], JobRemoved)

    def test_job_is_behind_with_one_due_tick_more(self) -> None:
        story = with_job(**self.EVERY_SECOND).when(RemoveJob(name=JOB), at=MAX_CLOSED_AT_ONCE + 1)
        assert story.refusal.code == "job_behind"

    def test_buffered_tick_is_kept_while_the_change_is_refused(self) -> None:
        story = running(**{**self.EVERY_SECOND, "overlap": "buffer_one", "catch_up_seconds": 90.0})
        story.given(claim(), claim(), at=61)
        buffered = story.row(JOBS, JOB).buffered_tick
        assert buffered
        story.when(RemoveJob(name=JOB), at=1_000)
        assert story.refusal.code == "job_behind"
        assert story.row(JOBS, JOB).buffered_tick == buffered

    @pytest.mark.parametrize("change", [define(**EVERY_SECOND, timeout_seconds=5.0), PauseJob(name=JOB)])
    def test_changes_that_keep_the_schedule_are_accepted(self, change: AnyCommand) -> None:
        story = with_job(**self.EVERY_SECOND).when(change, at=10 * MAX_CLOSED_AT_ONCE)
        assert story.outcome.refusal is None
        assert len(story.events) == 1


class TestScheduleChanges:
    def test_new_job_has_no_ticks_before_its_definition(self) -> None:
        story = with_job()
        assert story.row(JOBS, JOB).ticked_until == START
        story.when(claim(), at=59.9).then_nothing()

    def test_due_ticks_are_kept_when_the_schedule_stays_the_same(self) -> None:
        """The service was down for two minutes, and starts with another timeout."""
        story = with_job().given(define(timeout_seconds=5.0), at=150)
        story.when(claim(), at=150)
        assert [type(event) for event in story.events] == [RunMissed, AgentStatusChanged, RunStarted]
        assert story.events[0] == missed(60)

    def test_due_ticks_are_skipped_when_the_schedule_changes_or_missed_when_late(self) -> None:
        story = with_job().when(define(cron="0 * * * *"), at=180)
        story.then(missed(60), ended_before(120), ended_before(180), defined(cron="0 * * * *"))
        story.when(claim(), at=3_599).then_nothing()

    def test_tick_delayed_by_jitter_is_skipped_when_the_schedule_changes(self) -> None:
        story = with_job(jitter_seconds=30.0).when(define(cron="0 * * * *"), at=60)
        story.then(ended_before(60), defined(cron="0 * * * *"))

    def test_new_time_zone_or_interval_is_a_schedule_change(self) -> None:
        story = with_job().when(define(timezone="Europe/Berlin"), at=60)
        story.then(ended_before(60), defined(timezone="Europe/Berlin"))
        every: dict[str, Any] = {"cron": None, "every_seconds": 50.0}
        story.when(define(**every), at=120).then(ended_before(120), defined(**every))

    def test_buffered_tick_survives_a_schedule_change(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.when(define(overlap="buffer_one", cron="0 * * * *"), at=130)
        assert story.row(JOBS, JOB).buffered_tick == moment(120)

    def test_pause_and_note_survive_a_redefinition(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), define(retries=1), at=1)
        assert story.row(JOBS, JOB).paused
        assert story.row(JOBS, JOB).pause_note == "holidays"

    def test_pause_is_cleared_when_the_job_is_removed_and_defined_again(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), RemoveJob(name=JOB), define(), at=1)
        assert not story.row(JOBS, JOB).paused
        assert story.row(JOBS, JOB).pause_note is None


class TestDisabling:
    def test_disabling_ends_the_schedule(self) -> None:
        story = with_job().when(define(enabled=False), at=70)
        story.then(ended_before(60, "disabled"), defined(enabled=False))
        story.when(claim(), at=600).then_nothing()

    def test_reenabled_job_has_no_ticks_of_the_time_it_was_disabled(self) -> None:
        story = with_job(enabled=False).given(define(), at=600)
        story.when(claim(), at=659).then_nothing()

    def test_disabling_skips_the_buffered_tick(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.when(define(overlap="buffer_one", enabled=False), at=130)
        story.then(
            skipped(120, "the job was disabled while it waited"),
            defined(overlap="buffer_one", enabled=False),
        )


class TestRemoving:
    def test_removal_takes_a_job_off_the_schedule(self) -> None:
        story = (
            with_job()
            .when(RemoveJob(name=JOB), at=1)
            .then(JobRemoved(job=JOB, source="api"))
            .then_replied(name=JOB)
        )
        assert story.caused_by(JobRemoved) == story.position_of(JobDefined)
        assert story.squad.rows(JOBS).get(JOB) is None
        story.when(claim(), at=120).then_nothing()

    def test_removal_gives_buffered_and_due_ticks_an_outcome(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.when(RemoveJob(name=JOB), at=200)
        story.then(
            skipped(120, "the job was removed while it waited"),
            ended_before(180, "removed"),
            JobRemoved(job=JOB, source="api"),
        )

    def test_removal_of_a_disabled_job_records_no_missed_ticks(self) -> None:
        with_job(enabled=False).when(RemoveJob(name=JOB), at=600).then(JobRemoved(job=JOB, source="api"))

    def test_run_in_progress_can_end_after_its_job_is_removed(self) -> None:
        story = running().given(RemoveJob(name=JOB), at=61)
        story.when(end_attempt(run_id(JOB, moment(60))), at=62)
        assert not list(story.squad.all(RUNS))

    @pytest.mark.parametrize(
        "command",
        [RemoveJob(name=JOB), PauseJob(name=JOB), ResumeJob(name=JOB), RunJob(name=JOB, runner=RUNNER)],
    )
    def test_later_commands_of_the_batch_see_the_removal(self, command: Any) -> None:
        story = with_job().when(RemoveJob(name=JOB), command, at=120)
        assert story.refusal.code == "job_not_found"
        story.when(RegisterAgent(name="ann", role="agent"), claim()).then_nothing()

    @pytest.mark.parametrize(
        "command",
        [RemoveJob(name="x"), PauseJob(name="x"), ResumeJob(name="x"), RunJob(name="x", runner=RUNNER)],
    )
    def test_commands_for_an_unknown_job_are_refused(self, command: Any) -> None:
        a_squad().when(command).then_refused("job_not_found")

    def test_claim_after_the_removal_in_one_batch_records_nothing(self) -> None:
        with_job().when(RemoveJob(name=JOB), claim(), at=59).then(JobRemoved(job=JOB, source="api"))


class TestPausing:
    def test_pause_is_recorded_with_its_note(self) -> None:
        story = with_job().when(PauseJob(name=JOB, note="holidays"), at=1)
        story.then(JobPaused(job=JOB, reason="manual", note="holidays")).then_replied(
            paused=True, note="holidays"
        )

    def test_same_pause_changes_nothing(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), at=1)
        story.when(PauseJob(name=JOB, note="holidays"), at=2).then_nothing()

    def test_pause_with_another_note_is_recorded(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), at=1)
        story.when(PauseJob(name=JOB), at=2).then(JobPaused(job=JOB, reason="manual", note=None))

    def test_resuming_ends_the_pause(self) -> None:
        story = with_job().given(PauseJob(name=JOB), at=1).when(ResumeJob(name=JOB, note="back"), at=2)
        story.then(JobResumed(job=JOB, note="back")).then_replied(paused=False, note="back")
        assert story.caused_by(JobResumed) == story.position_of(JobPaused)
        story.when(ResumeJob(name=JOB), at=3).then_nothing()

    def test_resuming_a_job_that_is_not_paused_changes_nothing(self) -> None:
        with_job().when(ResumeJob(name=JOB, note="back"), at=1).then_nothing()


class TestDueJobs:
    def test_first_tick_is_returned_as_next_when_nothing_is_due(self) -> None:
        assert due_jobs(with_job().squad, moment(59)) == ([], [], moment(60))

    def test_job_is_due_at_its_tick(self) -> None:
        assert due_jobs(with_job().squad, moment(60)) == ([JOB], [], None)

    def test_job_is_due_after_its_jitter(self) -> None:
        story = with_job(jitter_seconds=30.0)
        jobs, _, later = due_jobs(story.squad, moment(60))
        assert jobs == []
        assert later
        assert moment(60) < later < moment(90)
        assert due_jobs(story.squad, later) == ([JOB], [], None)

    def test_run_is_due_when_its_lease_expires(self) -> None:
        squad = running().squad
        assert due_jobs(squad, moment(74)) == ([], [], moment(75))
        assert due_jobs(squad, moment(75)) == ([], [run_id(JOB, moment(60))], moment(120))

    def test_run_is_due_at_its_retry_time(self) -> None:
        story = running(retries=1)
        id_ = run_id(JOB, moment(60))
        story.given(end_attempt(id_, succeeded=False), at=61)
        retry_at = story.row(RUNS, id_).retry_at
        assert retry_at
        assert due_jobs(story.squad, retry_at - timedelta.resolution) == ([], [], retry_at)
        assert due_jobs(story.squad, retry_at) == ([], [id_], moment(120))

    def test_job_with_a_buffered_tick_is_due_when_the_run_ends(self) -> None:
        story = running(overlap="buffer_one")
        story.when(claim(), at=120).then(TickBuffered(job=JOB, tick=moment(120)))
        assert due_jobs(story.squad, moment(120))[0] == []
        story.given(end_attempt(run_id(JOB, moment(60))), at=121)
        assert due_jobs(story.squad, moment(121))[0] == [JOB]

    def test_disabled_job_is_never_due(self) -> None:
        assert due_jobs(with_job(enabled=False).squad, moment(600)) == ([], [], None)

    def test_due_jobs_are_ordered_by_their_agents_priority(self) -> None:
        story = with_job().given(RegisterAgent(name="bob", role="agent", priority=5))
        story.given(
            DefineJob(name="urgent", source="api", definition=definition(agent="bob")),
            DefineJob(
                name="own",
                source="api",
                definition=definition(agent=None, endpoint=None, task="status_update"),
            ),
        )
        assert due_jobs(story.squad, moment(60))[0] == ["urgent", JOB, "own"]


class TestStalledJob:
    """Its next tick cannot be computed, for example because its time zone is unknown to this process."""

    UNCOMPUTABLE: ClassVar[tuple[dict[str, Any], ...]] = (
        {"timezone": "Mars/Olympus"},
        {"timezone": "../../etc"},
        {"cron": "every day"},
        {"cron": None, "every_seconds": 0.0},
        {"cron": None, "every_seconds": 1e300},
    )

    @pytest.mark.parametrize("fields", UNCOMPUTABLE, ids=str)
    def test_stalled_job_is_reported_and_does_not_stop_others(self, fields: dict[str, Any]) -> None:
        story = with_job().given(define("strange", **fields))
        reported: list[tuple[str, str]] = []
        assert due_jobs(story.squad, moment(60), lambda job, why: reported.append((job.name, why)))[0] == [
            JOB
        ]
        assert [name for name, _ in reported] == ["strange"]
        assert reported[0][1]

    def test_job_with_jitter_beyond_any_calendar_does_not_stop_others(self) -> None:
        """Such a job can come with an import."""
        story = with_job().given(define("strange", jitter_seconds=1e300))
        assert due_jobs(story.squad, moment(60))[0][0] == JOB

    def test_stalled_job_can_be_redefined_and_removed(self) -> None:
        story = with_job(timezone="Mars/Olympus")
        story.when(define(), at=1).then(defined())
        story.given(define(timezone="Mars/Olympus"))
        story.when(RemoveJob(name=JOB), at=2).then(JobRemoved(job=JOB, source="api"))

    def test_stalled_job_is_shown_without_next_ticks(self) -> None:
        squad = with_job(timezone="Mars/Olympus").squad
        [row] = squad.all(JOBS)
        assert views.planned(row, moment(1))["next_ticks"] == []
        [shown] = loads(dumps(seed_views.jobs(squad, moment(1))))
        assert shown["nextRun"] is None


class TestUpcomingTicks:
    @pytest.mark.parametrize("now", [0, 59.9, 60, 150])
    def test_upcoming_ticks_are_in_the_future_even_if_some_are_overdue(self, now: float) -> None:
        row = with_job().row(JOBS, JOB)
        first = moment(now // 60 * 60 + 60)
        assert upcoming_ticks(row, moment(now), 2) == [first, first + timedelta(seconds=60)]

    def test_upcoming_ticks_follow_the_last_tick_with_an_outcome(self) -> None:
        """The log's time can be ahead of a clock that was set back."""
        row = with_job().row(JOBS, JOB).replaced(ticked_until=moment(3_600))
        assert upcoming_ticks(row, moment(1), 1) == [moment(3_660)]

    def test_upcoming_ticks_are_not_computed_again_for_each_request(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With thousands of jobs, computing them took so long that no other request was answered."""
        squad = with_job(cron="7 7 7 7 *").squad
        due_jobs(squad, moment(1))
        computed: list[Schedule] = []
        monkeypatch.setattr("service.schedule._next_tick", lambda schedule, _: computed.append(schedule))
        for seconds in (2, 3):
            [shown] = loads(dumps(seed_views.jobs(squad, moment(seconds))))
            assert shown["nextRun"] == "2026-07-07T07:07:00Z"
        assert computed == []


def test_claiming_what_is_due_always_records_an_event() -> None:
    """Otherwise the scheduler would claim it over and over, without a pause."""
    story = running(overlap="buffer_one", retries=1).given(claim(), at=120).given(StopOrchestrator())
    claimed = 0
    for seconds in (125, 180, 181, 240, 900):
        jobs, runs, _ = due_jobs(story.squad, moment(seconds))
        commands: list[AnyCommand] = [claim(OTHER, name) for name in jobs]
        commands += [take_up(id_) for id_ in runs]
        for command in commands:
            story.when(command, at=seconds)
            assert story.events
            claimed += 1
    assert claimed == 5

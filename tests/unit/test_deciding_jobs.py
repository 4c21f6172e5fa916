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
from service.decide.ticks import MAX_MISSED_AT_ONCE
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
    ended,
    take_up,
    with_job,
)
from tests.unit.support import START, Story, moment

if TYPE_CHECKING:
    from service.commands import AnyCommand
    from service.schedule import Schedule


def defined(source: Any = "settings", **fields: Any) -> JobDefined:
    return JobDefined(job=JOB, source=source, definition=definition(**fields))


def missed(tick: float) -> RunMissed:
    return RunMissed(run_id=run_id(JOB, moment(tick)), job=JOB, tick=moment(tick))


def skipped(tick: float, detail: str) -> RunSkipped:
    at = moment(tick)
    return RunSkipped(run_id=run_id(JOB, at), job=JOB, tick=at, reason="overlap", detail=detail)


def running(**fields: Any) -> Story:
    """A squad whose job has been running since its first tick."""
    return with_job(**fields).given(claim(), at=60)


class TestDefining:
    def test_puts_a_job_on_the_schedule(self) -> None:
        a_squad().when(define()).then(defined()).replied(name=JOB)

    def test_the_same_again_changes_nothing(self) -> None:
        story = with_job()
        story.when(define(), at=1).then_nothing().replied(position=story.position_of(JobDefined))

    def test_anew_holds_the_whole_job_and_names_what_it_replaces(self) -> None:
        story = with_job()
        first = story.position_of(JobDefined)
        story.when(define(timeout_seconds=5.0), at=1).then(defined(timeout_seconds=5.0))
        assert story.caused_by(JobDefined) == first

    def test_of_an_agent_that_nobody_knows_is_refused(self) -> None:
        a_squad().when(define(agent="nobody")).then_refused("agent_not_found")

    def test_needs_no_agent_where_none_is_called(self) -> None:
        fields: dict[str, Any] = {"agent": None, "endpoint": None, "task": "status_update"}
        a_squad().when(define(**fields)).then(defined(**fields))

    def test_after_removal_in_the_same_batch_puts_it_back(self) -> None:
        story = with_job().when(RemoveJob(name=JOB), define(), at=1)
        story.then(JobRemoved(job=JOB, source="api"), defined())

    def test_after_removal_goes_on_with_the_jobs_history(self) -> None:
        story = with_job().given(RemoveJob(name=JOB), at=1).when(define(), at=2).then(defined())
        assert story.recorded[-1].version == 3


class TestPrecedence:
    @pytest.mark.parametrize("earlier", ["settings", "api"])
    def test_a_default_gives_way_to_what_was_said_on_purpose(self, earlier: str) -> None:
        story = with_job(source=earlier, timeout_seconds=5.0)
        story.when(define(source="default"), at=1).then_nothing()

    def test_a_default_that_changed_replaces_the_default(self) -> None:
        story = with_job(source="default", timeout_seconds=5.0)
        story.when(define(source="default"), at=1).then(defined("default"))

    @pytest.mark.parametrize("earlier", ["default", "api"])
    def test_settings_replace_the_default_and_what_came_by_the_api(self, earlier: str) -> None:
        story = with_job(source=earlier)
        story.when(define(timeout_seconds=5.0), at=1).then(defined(timeout_seconds=5.0))

    def test_another_schedule_counts_from_the_moment_on_that_it_is_given(self) -> None:
        story = with_job(cron="0 * * * *").given(define(), at=600).when(claim(), at=660)
        assert [type(event) for event in story.events] == [AgentStatusChanged, RunStarted]

    @pytest.mark.parametrize("earlier", ["default", "settings"])
    def test_the_api_replaces_everything(self, earlier: str) -> None:
        story = with_job(source=earlier)
        story.when(define(source="api", retries=2), at=1).then(defined("api", retries=2))


class TestRemovedOnPurpose:
    """A seed's job that somebody removed stays removed, until the settings name it or let it go."""

    def removed(self, source: Any = "default") -> Story:
        return with_job(source=source).given(RemoveJob(name=JOB), at=1)

    @pytest.mark.parametrize("source", ["default", "settings", "api"])
    def test_does_not_come_back_by_default(self, source: Any) -> None:
        story = self.removed(source)
        story.when(define(source="default"), at=2).then_nothing()
        story.replied(position=story.position_of(JobRemoved))
        assert story.squad.rows(JOBS).get(JOB) is None
        assert not story.squad.versions.keys() & {f"job-{JOB}"}

    @pytest.mark.parametrize("source", ["settings", "api"])
    def test_comes_back_where_it_is_named(self, source: Any) -> None:
        self.removed().when(define(source=source), at=2).then(defined(source))

    def test_comes_back_by_default_after_the_settings_went_without_it(self) -> None:
        story = self.removed().when(WithdrawJob(name=JOB), at=2)
        story.then(JobRemoved(job=JOB, source="settings"))
        story.when(WithdrawJob(name=JOB), at=3).then_refused("job_not_found")
        story.when(define(source="default"), at=4).then(defined("default"))

    @pytest.mark.parametrize("source", ["settings", "api"])
    def test_has_no_more_ticks_where_the_settings_went_without_it(self, source: Any) -> None:
        story = self.removed(source).when(WithdrawJob(name=JOB), at=300)
        story.then(JobRemoved(job=JOB, source="settings"))

    def test_by_the_settings_comes_back_by_default(self) -> None:
        story = with_job(source="default").when(WithdrawJob(name=JOB), at=1)
        story.then(JobRemoved(job=JOB, source="settings"))
        story.when(define(source="default"), at=2).then(defined("default"))

    def test_of_a_job_that_came_by_the_api_is_not_the_settings_business(self) -> None:
        story = with_job(source="api").when(WithdrawJob(name=JOB), at=1).then_nothing()
        assert not story.row(JOBS, JOB).removed

    def test_of_a_job_that_nobody_knows_is_refused(self) -> None:
        a_squad().when(WithdrawJob(name="x")).then_refused("job_not_found")

    def test_in_the_same_batch_is_known_as_well(self) -> None:
        story = with_job(source="default").when(RemoveJob(name=JOB), define(source="default"), at=1)
        story.then(JobRemoved(job=JOB, source="api"))


class TestAJobThatIsBehind:
    """More ticks are due than one decision records."""

    FAST: ClassVar[dict[str, Any]] = {"cron": None, "every_seconds": 1.0, "catch_up_seconds": 1.0}
    CHANGES: ClassVar[list[AnyCommand]] = [
        RemoveJob(name=JOB),
        WithdrawJob(name=JOB),
        define(**FAST, enabled=False),
        define(**{**FAST, "every_seconds": 2.0}),
    ]

    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
    def test_is_changed_once_all_of_them_have_their_outcome(self, change: AnyCommand) -> None:
        story = with_job(**self.FAST)
        away = 2 * MAX_MISSED_AT_ONCE + 100
        told: list[Event] = []
        for _ in range(2):
            story.when(change, at=away)
            assert story.refusal.code == "job_behind"
            assert story.refusal.retry_after_seconds == 1
            assert len(story.events) == MAX_MISSED_AT_ONCE
            told += story.events
        story.when(change, at=away)
        assert story.outcome.refusal is None
        told += story.events[:-1]
        assert told == [missed(tick) for tick in range(1, away + 1)]
        assert isinstance(story.events[-1], JobRemoved | JobDefined)

    def test_is_not_behind_with_just_as_many_as_one_decision_records(self) -> None:
        story = with_job(**self.FAST).when(RemoveJob(name=JOB), at=MAX_MISSED_AT_ONCE)
        assert len(story.events) == MAX_MISSED_AT_ONCE + 1
        assert isinstance(story.events[-1], JobRemoved)

    def test_is_behind_with_one_more(self) -> None:
        story = with_job(**self.FAST).when(RemoveJob(name=JOB), at=MAX_MISSED_AT_ONCE + 1)
        assert story.refusal.code == "job_behind"

    def test_keeps_the_tick_that_waits_until_it_is_changed(self) -> None:
        story = running(**{**self.FAST, "overlap": "buffer_one", "catch_up_seconds": 90.0})
        story.given(claim(), claim(), at=61)
        waits = story.row(JOBS, JOB).buffered_tick
        assert waits
        story.when(RemoveJob(name=JOB), at=1_000)
        assert story.refusal.code == "job_behind"
        assert story.row(JOBS, JOB).buffered_tick == waits

    @pytest.mark.parametrize("change", [define(**FAST, timeout_seconds=5.0), PauseJob(name=JOB)])
    def test_takes_changes_that_leave_its_schedule(self, change: AnyCommand) -> None:
        story = with_job(**self.FAST).when(change, at=10 * MAX_MISSED_AT_ONCE)
        assert story.outcome.refusal is None
        assert len(story.events) == 1


class TestWhatChangesOfASchedule:
    def test_never_owes_what_was_before_it(self) -> None:
        story = with_job()
        assert story.row(JOBS, JOB).ticked_until == START
        story.when(claim(), at=59.9).then_nothing()

    def test_keeps_the_ticks_that_are_due_where_the_schedule_stays(self) -> None:
        """Nobody was there for two minutes; then the service starts with another timeout."""
        story = with_job().given(define(timeout_seconds=5.0), at=150)
        story.when(claim(), at=150)
        assert [type(event) for event in story.events] == [RunMissed, AgentStatusChanged, RunStarted]
        assert story.events[0] == missed(60)

    def test_gives_due_ticks_their_outcome_where_the_schedule_is_another(self) -> None:
        story = with_job().when(define(cron="0 * * * *"), at=180)
        story.then(missed(60), missed(120), missed(180), defined(cron="0 * * * *"))
        story.when(claim(), at=3_599).then_nothing()

    def test_gives_its_outcome_also_to_a_tick_that_jitter_delays(self) -> None:
        story = with_job(jitter_seconds=30.0).when(define(cron="0 * * * *"), at=60)
        story.then(missed(60), defined(cron="0 * * * *"))

    def test_counts_a_change_of_the_zone_or_from_cron_to_an_interval(self) -> None:
        story = with_job().when(define(timezone="Europe/Berlin"), at=60)
        story.then(missed(60), defined(timezone="Europe/Berlin"))
        every: dict[str, Any] = {"cron": None, "every_seconds": 50.0}
        story.when(define(**every), at=120).then(missed(120), defined(**every))

    def test_keeps_the_tick_that_waits_for_the_present_run(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.when(define(overlap="buffer_one", cron="0 * * * *"), at=130)
        assert story.row(JOBS, JOB).buffered_tick == moment(120)

    def test_keeps_a_pause_and_its_note(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), define(retries=1), at=1)
        assert story.row(JOBS, JOB).paused
        assert story.row(JOBS, JOB).pause_note == "holidays"

    def test_forgets_a_pause_where_the_job_was_removed_in_between(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), RemoveJob(name=JOB), define(), at=1)
        assert not story.row(JOBS, JOB).paused
        assert story.row(JOBS, JOB).pause_note is None


class TestDisabling:
    def test_ends_the_schedule(self) -> None:
        story = with_job().when(define(enabled=False), at=70).then(missed(60), defined(enabled=False))
        story.when(claim(), at=600).then_nothing()

    def test_owes_nothing_when_it_is_over(self) -> None:
        story = with_job(enabled=False).given(define(), at=600)
        story.when(claim(), at=659).then_nothing()

    def test_lets_no_tick_wait(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.when(define(overlap="buffer_one", enabled=False), at=130)
        story.then(
            skipped(120, "the job was disabled while it waited"),
            defined(overlap="buffer_one", enabled=False),
        )


class TestRemoving:
    def test_takes_a_job_off_the_schedule(self) -> None:
        story = (
            with_job()
            .when(RemoveJob(name=JOB), at=1)
            .then(JobRemoved(job=JOB, source="api"))
            .replied(name=JOB)
        )
        assert story.caused_by(JobRemoved) == story.position_of(JobDefined)
        assert story.squad.rows(JOBS).get(JOB) is None
        story.when(claim(), at=120).then_nothing()

    def test_leaves_no_tick_without_an_outcome(self) -> None:
        story = running(overlap="buffer_one").given(claim(), at=120)
        story.when(RemoveJob(name=JOB), at=200)
        story.then(
            skipped(120, "the job was removed while it waited"),
            missed(180),
            JobRemoved(job=JOB, source="api"),
        )

    def test_of_a_disabled_job_which_has_no_ticks_misses_none(self) -> None:
        with_job(enabled=False).when(RemoveJob(name=JOB), at=600).then(JobRemoved(job=JOB, source="api"))

    def test_lets_a_run_under_way_end(self) -> None:
        story = running().given(RemoveJob(name=JOB), at=61)
        story.when(ended(run_id(JOB, moment(60))), at=62)
        assert not list(story.squad.all(RUNS))

    @pytest.mark.parametrize(
        "command",
        [RemoveJob(name=JOB), PauseJob(name=JOB), ResumeJob(name=JOB), RunJob(name=JOB, runner=RUNNER)],
    )
    def test_is_known_at_once_to_what_follows_in_the_batch(self, command: Any) -> None:
        story = with_job().when(RemoveJob(name=JOB), command, at=120)
        assert story.refusal.code == "job_not_found"
        story.when(RegisterAgent(name="ann", role="agent"), claim()).then_nothing()

    @pytest.mark.parametrize(
        "command",
        [RemoveJob(name="x"), PauseJob(name="x"), ResumeJob(name="x"), RunJob(name="x", runner=RUNNER)],
    )
    def test_of_what_nobody_knows_is_refused_like_all_else(self, command: Any) -> None:
        a_squad().when(command).then_refused("job_not_found")

    def test_makes_a_claim_of_its_ticks_find_nothing(self) -> None:
        with_job().when(RemoveJob(name=JOB), claim(), at=59).then(JobRemoved(job=JOB, source="api"))


class TestPausing:
    def test_is_recorded_with_its_note(self) -> None:
        story = with_job().when(PauseJob(name=JOB, note="holidays"), at=1)
        story.then(JobPaused(job=JOB, reason="manual", note="holidays")).replied(
            paused=True, note="holidays"
        )

    def test_the_same_again_changes_nothing(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), at=1)
        story.when(PauseJob(name=JOB, note="holidays"), at=2).then_nothing()

    def test_with_another_note_records_that(self) -> None:
        story = with_job().given(PauseJob(name=JOB, note="holidays"), at=1)
        story.when(PauseJob(name=JOB), at=2).then(JobPaused(job=JOB, reason="manual", note=None))

    def test_ends_by_resuming(self) -> None:
        story = with_job().given(PauseJob(name=JOB), at=1).when(ResumeJob(name=JOB, note="back"), at=2)
        story.then(JobResumed(job=JOB, note="back")).replied(paused=False, note="back")
        assert story.caused_by(JobResumed) == story.position_of(JobPaused)
        story.when(ResumeJob(name=JOB), at=3).then_nothing()

    def test_of_a_job_that_runs_leaves_nothing_to_resume(self) -> None:
        with_job().when(ResumeJob(name=JOB, note="back"), at=1).then_nothing()


class TestWhatIsToBeClaimed:
    def test_is_nothing_before_the_first_tick_which_is_named(self) -> None:
        assert due_jobs(with_job().squad, moment(59)) == ([], [], moment(60))

    def test_is_a_job_whose_tick_is_due(self) -> None:
        assert due_jobs(with_job().squad, moment(60)) == ([JOB], [], None)

    def test_waits_for_the_jitter(self) -> None:
        story = with_job(jitter_seconds=30.0)
        jobs, _, later = due_jobs(story.squad, moment(60))
        assert jobs == []
        assert later
        assert moment(60) < later < moment(90)
        assert due_jobs(story.squad, later) == ([JOB], [], None)

    def test_is_a_run_whose_lease_ran_out(self) -> None:
        squad = running().squad
        assert due_jobs(squad, moment(74)) == ([], [], moment(75))
        assert due_jobs(squad, moment(75)) == ([], [run_id(JOB, moment(60))], moment(120))

    def test_is_a_run_whose_next_attempt_is_due(self) -> None:
        story = running(retries=1)
        id_ = run_id(JOB, moment(60))
        story.given(ended(id_, succeeded=False), at=61)
        retry_at = story.row(RUNS, id_).retry_at
        assert retry_at
        assert due_jobs(story.squad, retry_at - timedelta.resolution) == ([], [], retry_at)
        assert due_jobs(story.squad, retry_at) == ([], [id_], moment(120))

    def test_is_a_tick_that_waits_as_soon_as_nothing_is_in_its_way(self) -> None:
        story = running(overlap="buffer_one")
        story.when(claim(), at=120).then(TickBuffered(job=JOB, tick=moment(120)))
        assert due_jobs(story.squad, moment(120))[0] == []
        story.given(ended(run_id(JOB, moment(60))), at=121)
        assert due_jobs(story.squad, moment(121))[0] == [JOB]

    def test_leaves_out_what_is_disabled(self) -> None:
        assert due_jobs(with_job(enabled=False).squad, moment(600)) == ([], [], None)

    def test_is_ordered_by_the_agents_priority(self) -> None:
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


class TestAJobWhoseTicksNobodyCanTell:
    """Such as one that a process defined whose time zones are newer."""

    UNKNOWN: ClassVar[tuple[dict[str, Any], ...]] = (
        {"timezone": "Mars/Olympus"},
        {"timezone": "../../etc"},
        {"cron": "every day"},
        {"cron": None, "every_seconds": 0.0},
        {"cron": None, "every_seconds": 1e300},
    )

    @pytest.mark.parametrize("fields", UNKNOWN, ids=str)
    def test_stands_still_alone(self, fields: dict[str, Any]) -> None:
        story = with_job().given(define("strange", **fields))
        told: list[tuple[str, str]] = []
        assert due_jobs(story.squad, moment(60), lambda job, why: told.append((job.name, why)))[0] == [JOB]
        assert [name for name, _ in told] == ["strange"]
        assert told[0][1]

    def test_is_in_no_other_jobs_way_where_its_jitter_is_beyond_any_calendar(self) -> None:
        """As it may come with an import."""
        story = with_job().given(define("strange", jitter_seconds=1e300))
        assert due_jobs(story.squad, moment(60))[0][0] == JOB

    def test_can_be_mended_and_removed(self) -> None:
        story = with_job(timezone="Mars/Olympus")
        story.when(define(), at=1).then(defined())
        story.given(define(timezone="Mars/Olympus"))
        story.when(RemoveJob(name=JOB), at=2).then(JobRemoved(job=JOB, source="api"))

    def test_is_shown_without_the_next_ones(self) -> None:
        squad = with_job(timezone="Mars/Olympus").squad
        [row] = squad.all(JOBS)
        assert views.planned(row, moment(1))["next_ticks"] == []
        [shown] = loads(dumps(seed_views.jobs(squad, moment(1))))
        assert shown["nextRun"] is None


class TestTicksThatAreShown:
    @pytest.mark.parametrize("now", [0, 59.9, 60, 150])
    def test_are_those_still_to_come_also_where_some_are_owed(self, now: float) -> None:
        row = with_job().row(JOBS, JOB)
        first = moment(now // 60 * 60 + 60)
        assert upcoming_ticks(row, moment(now), 2) == [first, first + timedelta(seconds=60)]

    def test_are_not_before_the_last_that_has_its_outcome(self) -> None:
        """As where the log's time is ahead of the clock that was put right."""
        row = with_job().row(JOBS, JOB).replaced(ticked_until=moment(3_600))
        assert upcoming_ticks(row, moment(1), 1) == [moment(3_660)]

    def test_are_not_reckoned_anew_at_each_look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With thousands of jobs that took so long that nobody else was answered."""
        squad = with_job(cron="7 7 7 7 *").squad
        due_jobs(squad, moment(1))
        reckoned: list[Schedule] = []
        monkeypatch.setattr("service.schedule._next_tick", lambda schedule, _: reckoned.append(schedule))
        for seconds in (2, 3):
            [shown] = loads(dumps(seed_views.jobs(squad, moment(seconds))))
            assert shown["nextRun"] == "2026-07-07T07:07:00Z"
        assert reckoned == []


def test_whatever_is_to_be_claimed_leads_to_something() -> None:
    """Otherwise the scheduler would claim it over and over, without ever resting."""
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

"""What becomes of ticks that are due when their job is changed or removed: nobody was late for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from eventstore.events import RunMissed, RunSkipped
from projections.jobs import JOBS
from projections.runs import run_id
from service.commands import RemoveJob, WithdrawJob
from service.decide.ticks import MAX_CLOSED_AT_ONCE
from tests.unit.job_stories import JOB, claim, define, with_job
from tests.unit.stories import moment

if TYPE_CHECKING:
    from service.commands import AnyCommand
    from tests.unit.stories import Story


def outcomes(story: Story) -> list[tuple[float, str]]:
    """The second and the outcome of each tick that the last batch decided."""
    return [
        ((event.tick - moment(0)).total_seconds(), event.type)
        for event in story.events
        if isinstance(event, RunMissed | RunSkipped)
    ]


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (define(cron="0 * * * *"), "rescheduled"),
        (define(timezone="Europe/Berlin"), "rescheduled"),
        (define(cron=None, every_seconds=60.0), "rescheduled"),
        (define(enabled=False), "disabled"),
        (RemoveJob(name=JOB), "removed"),
        (WithdrawJob(name=JOB), "removed"),
    ],
    ids=["cron", "timezone", "every", "disabled", "removed", "withdrawn"],
)
def test_a_tick_is_skipped_when_its_schedule_ends_within_its_catch_up_time(
    change: AnyCommand, how: str
) -> None:
    story = with_job()
    defined = story.row(JOBS, JOB).position
    story.when(change, at=65)
    assert story.events[0] == RunSkipped(
        run_id=run_id(JOB, moment(60)),
        job=JOB,
        tick=moment(60),
        reason="schedule_ended",
        detail=f"the job is being {how}",
    )
    assert story.caused_by(RunSkipped) == defined
    assert len(story.events) == 2


def test_a_tick_is_missed_when_its_schedule_ends_after_its_catch_up_time() -> None:
    story = with_job().when(define(cron="0 * * * *"), at=180)
    assert outcomes(story) == [(60, "run_missed"), (120, "run_skipped"), (180, "run_skipped")]


def test_the_catch_up_time_counts_from_the_delayed_moment_when_jitter_delays_a_tick() -> None:
    """The first tick is delayed by some of the 100 seconds, so that it is not yet due after 61."""
    jitter: dict[str, Any] = {"jitter_seconds": 100.0, "catch_up_seconds": 0.5}
    story = with_job(**jitter).when(claim(), at=61).then_nothing()
    assert outcomes(story.when(RemoveJob(name=JOB), at=61)) == [(60, "run_skipped")]


class TestAJobWithVeryManyTicks:
    PATIENT: ClassVar[dict[str, Any]] = {"cron": None, "every_seconds": 1.0, "catch_up_seconds": 3_600.0}

    def test_has_them_skipped_in_several_steps_when_all_could_still_have_run(self) -> None:
        away = 2 * MAX_CLOSED_AT_ONCE + 100
        story, found = with_job(**self.PATIENT), list[tuple[float, str]]()
        for _ in range(2):
            story.when(RemoveJob(name=JOB), at=away)
            assert story.refusal.code == "job_behind"
            found += outcomes(story)
        found += outcomes(story.when(RemoveJob(name=JOB), at=away))
        assert story.outcome.refusal is None
        assert found == [(tick, "run_skipped") for tick in range(1, away + 1)]

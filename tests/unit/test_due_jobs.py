"""Checking what is due costs only as much as what has changed, however many jobs there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service import schedule
from service.commands import PauseJob, RegisterAgent, RemoveJob
from service.decide.jobs import due_jobs
from service.memory.due_jobs import MAX_COMPUTED_AT_ONCE, RETRY_AFTER
from tests.unit.job_stories import JOB, a_squad, claim, define
from tests.unit.stories import moment

if TYPE_CHECKING:
    from datetime import datetime

    from service.schedule import Schedule
    from tests.unit.stories import Story

JOBS = 5 * MAX_COMPUTED_AT_ONCE


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Schedule]:
    """The schedules whose next tick is computed, each time anew: nothing is cached by schedule."""
    computed_schedules: list[Schedule] = []
    original = schedule._next_tick

    def next_tick(schedule_: Schedule, after: datetime) -> datetime | None:
        computed_schedules.append(schedule_)
        return original(schedule_, after)

    monkeypatch.setattr(schedule, "next_tick", next_tick)
    monkeypatch.setattr("service.memory.due_jobs.next_tick", next_tick)
    return computed_schedules


def with_jobs() -> Story:
    """A squad with many jobs that tick every minute; the agent of the last one has priority."""
    story = a_squad().given(RegisterAgent(name="first", role="agent", priority=5))
    story.given(*(define(f"job {number}") for number in range(JOBS - 1)))
    return story.given(define("urgent", agent="first"))


def check_all(story: Story, at: datetime) -> list[str]:
    """What is due, once the next ticks of all jobs are computed."""
    while True:
        jobs, _, later = due_jobs(story.squad, at)
        if later != at:
            return jobs
        assert jobs == []


def test_each_check_computes_few_ticks_and_no_job_is_due_before_all_are_known(
    computed: list[Schedule],
) -> None:
    story = with_jobs()
    assert due_jobs(story.squad, moment(60)) == ([], [], moment(60))
    assert len(computed) == MAX_COMPUTED_AT_ONCE
    jobs = check_all(story, moment(60))
    assert jobs == ["urgent", *(f"job {number}" for number in range(JOBS - 1))]


def test_ticks_of_unchanged_jobs_are_not_computed_again(computed: list[Schedule]) -> None:
    story = with_jobs()
    assert check_all(story, moment(1)) == []
    computed.clear()
    assert due_jobs(story.squad, moment(59)) == ([], [], moment(60))
    assert len(due_jobs(story.squad, moment(60))[0]) == JOBS
    assert computed == []
    story.given(claim(name="urgent"), PauseJob(name="job 1"), RemoveJob(name="job 2"), at=60)
    computed.clear()
    jobs = due_jobs(story.squad, moment(60))[0]
    assert sorted(jobs) == sorted(f"job {number}" for number in range(JOBS - 1) if number != 2)
    assert len(computed) == 2


def test_job_removed_before_its_tick_is_not_due() -> None:
    story = a_squad().given(define())
    assert due_jobs(story.squad, moment(1)) == ([], [], moment(60))
    story.given(RemoveJob(name=JOB), at=2)
    assert due_jobs(story.squad, moment(60)) == ([], [], None)


def test_computed_tick_is_known_without_its_jitter() -> None:
    story = a_squad().given(define(jitter_seconds=30.0))
    agenda = story.squad.due_jobs
    assert agenda.tick(JOB) is None
    later = due_jobs(story.squad, moment(1))[2]
    assert later
    assert later > moment(60)
    assert agenda.tick(JOB) == moment(60)
    story.given(PauseJob(name=JOB))
    assert agenda.tick(JOB) is None


def test_copy_of_the_squad_has_its_own_due_jobs() -> None:
    story = with_jobs()
    assert len(check_all(story, moment(60))) == JOBS
    copy = story.squad.copy()
    story.given(*(claim(name=f"job {number}") for number in range(JOBS - 1)), at=60)
    assert check_all(story, moment(60)) == ["urgent"]
    story.squad = copy
    assert len(check_all(story, moment(60))) == JOBS


def test_stalled_job_is_retried_after_a_while() -> None:
    story = a_squad().given(define(timezone="Mars/Olympus"))
    reported: list[str] = []

    def check(at: datetime) -> datetime | None:
        return due_jobs(story.squad, at, lambda job, why: reported.append(job.name))[2]

    retry_at = check(moment(1))
    assert retry_at == moment(1) + RETRY_AFTER
    assert check(moment(2)) == retry_at
    assert reported == [JOB]
    assert check(retry_at) == retry_at
    assert check(retry_at) == retry_at + RETRY_AFTER
    assert reported == [JOB, JOB]


def test_outdated_heap_entries_are_dropped() -> None:
    story = a_squad()
    for number in range(1_000):
        story.given(define(cron=None, every_seconds=20_000_000.0 + number))
        assert due_jobs(story.squad, moment(1))[0] == []
    assert len(story.squad.due_jobs._heap) < 200


def test_next_job_is_still_the_soonest_after_outdated_entries_are_dropped() -> None:
    story = a_squad()
    for number in range(150):
        story.given(define("changes", cron=None, every_seconds=20_000_000.0 + number))
        due_jobs(story.squad, moment(1))
    story.given(*(define(f"every {s} s", cron=None, every_seconds=float(s)) for s in (50, 40, 30, 20)))
    for number in range(150):
        story.given(define("changes", cron=None, every_seconds=10_000_000.0 + number))
        due_jobs(story.squad, moment(1))
    assert due_jobs(story.squad, moment(1)) == ([], [], moment(20))
    assert due_jobs(story.squad, moment(29))[0] == ["every 20 s"]
    assert due_jobs(story.squad, moment(59))[0] == [f"every {s} s" for s in (20, 30, 40, 50)]

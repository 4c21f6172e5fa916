"""Looking for what is due takes as long as what has changed, however many jobs there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service import schedule
from service.commands import PauseJob, RegisterAgent, RemoveJob
from service.decide.jobs import due_jobs
from service.memory.due_jobs import MAX_COMPUTED_AT_ONCE, RETRY_AFTER
from tests.unit.job_stories import JOB, a_squad, claim, define
from tests.unit.support import moment

if TYPE_CHECKING:
    from datetime import datetime

    from service.schedule import Schedule
    from tests.unit.support import Story

JOBS = 5 * MAX_COMPUTED_AT_ONCE


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Schedule]:
    """Whose ticks were worked out. Nothing is remembered for long, as where there are very many jobs."""
    worked_out: list[Schedule] = []
    really = schedule._next_tick

    def next_tick(asked: Schedule, after: datetime) -> datetime | None:
        worked_out.append(asked)
        return really(asked, after)

    monkeypatch.setattr(schedule, "next_tick", next_tick)
    monkeypatch.setattr("service.memory.due_jobs.next_tick", next_tick)
    return worked_out


def with_jobs() -> Story:
    """A squad with many jobs, each of which ticks every minute; the last one's agent goes first."""
    story = a_squad().given(RegisterAgent(name="first", role="agent", priority=5))
    story.given(*(define(f"job {number}") for number in range(JOBS - 1)))
    return story.given(define("urgent", agent="first"))


def look_at_all(story: Story, at: datetime) -> list[str]:
    """What is due, once that is told of all jobs."""
    while True:
        jobs, _, later = due_jobs(story.squad, at)
        if later != at:
            return jobs
        assert jobs == []


def test_few_are_worked_out_at_one_look_and_none_is_claimed_before_all_are(told: list[Schedule]) -> None:
    story = with_jobs()
    assert due_jobs(story.squad, moment(60)) == ([], [], moment(60))
    assert len(told) == MAX_COMPUTED_AT_ONCE
    jobs = look_at_all(story, moment(60))
    assert jobs == ["urgent", *(f"job {number}" for number in range(JOBS - 1))]


def test_what_has_not_changed_is_not_worked_out_again(told: list[Schedule]) -> None:
    story = with_jobs()
    assert look_at_all(story, moment(1)) == []
    told.clear()
    assert due_jobs(story.squad, moment(59)) == ([], [], moment(60))
    assert len(due_jobs(story.squad, moment(60))[0]) == JOBS
    assert told == []
    story.given(claim(name="urgent"), PauseJob(name="job 1"), RemoveJob(name="job 2"), at=60)
    told.clear()
    jobs = due_jobs(story.squad, moment(60))[0]
    assert sorted(jobs) == sorted(f"job {number}" for number in range(JOBS - 1) if number != 2)
    assert len(told) == 2


def test_one_that_was_removed_before_its_time_is_passed_over_when_that_comes() -> None:
    story = a_squad().given(define())
    assert due_jobs(story.squad, moment(1)) == ([], [], moment(60))
    story.given(RemoveJob(name=JOB), at=2)
    assert due_jobs(story.squad, moment(60)) == ([], [], None)


def test_a_tick_is_known_once_it_is_worked_out_before_any_jitter() -> None:
    story = a_squad().given(define(jitter_seconds=30.0))
    agenda = story.squad.due_jobs
    assert agenda.tick(JOB) is None
    later = due_jobs(story.squad, moment(1))[2]
    assert later
    assert later > moment(60)
    assert agenda.tick(JOB) == moment(60)
    story.given(PauseJob(name=JOB))
    assert agenda.tick(JOB) is None


def test_a_copy_of_the_squad_has_an_agenda_of_its_own() -> None:
    story = with_jobs()
    assert len(look_at_all(story, moment(60))) == JOBS
    copy = story.squad.copy()
    story.given(*(claim(name=f"job {number}") for number in range(JOBS - 1)), at=60)
    assert look_at_all(story, moment(60)) == ["urgent"]
    story.squad = copy
    assert len(look_at_all(story, moment(60))) == JOBS


def test_one_that_stands_still_is_looked_at_again_after_a_while() -> None:
    story = a_squad().given(define(timezone="Mars/Olympus"))
    said: list[str] = []

    def look(at: datetime) -> datetime | None:
        return due_jobs(story.squad, at, lambda job, why: said.append(job.name))[2]

    again = look(moment(1))
    assert again == moment(1) + RETRY_AFTER
    assert look(moment(2)) == again
    assert said == [JOB]
    assert look(again) == again
    assert look(again) == again + RETRY_AFTER
    assert said == [JOB, JOB]


def test_what_a_job_was_due_at_before_is_forgotten() -> None:
    story = a_squad()
    for number in range(1_000):
        story.given(define(cron=None, every_seconds=20_000_000.0 + number))
        assert due_jobs(story.squad, moment(1))[0] == []
    assert len(story.squad.due_jobs._heap) < 200


def test_the_soonest_is_still_first_after_that() -> None:
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

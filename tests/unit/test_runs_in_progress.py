"""The runs in progress of a job are found by an index, without a scan of all runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projections.runs import RUNS, run_id
from service.decide.jobs import due_jobs
from service.memory.draft import Draft
from service.memory.squad import Squad
from tests.unit.job_stories import JOB, a_squad, claim, define, end_attempt
from tests.unit.stories import moment

if TYPE_CHECKING:
    import pytest

    from projections.projection import Table
    from service.memory.state import State

FIRST, SECOND = (run_id(JOB, moment(minute * 60)) for minute in (1, 2))
OF_OTHER_JOB = run_id("other", moment(60))


def runs_in_progress(state: State, job: str = JOB) -> set[str]:
    return {row.id for row in state.runs_of(job)}


def spy_on_scans(monkeypatch: pytest.MonkeyPatch, kind: type[State]) -> list[str]:
    """The names of the tables that are scanned in states of this kind, from now on."""
    scanned_tables: list[str] = []
    original = kind.all

    def call(self: State, table: Table[Any, Any]) -> Any:
        scanned_tables.append(table.name)
        return original(self, table)

    monkeypatch.setattr(kind, "all", call)
    return scanned_tables


def test_runs_of_a_job_are_found_from_their_start_to_their_end() -> None:
    story = a_squad().given(define(overlap="allow_all"), define("other"))
    assert runs_in_progress(story.squad) == set()
    story.given(claim(), claim(name="other"), at=60).given(claim(), at=120)
    assert runs_in_progress(story.squad) == runs_in_progress(story.squad.copy()) == {FIRST, SECOND}
    assert runs_in_progress(story.squad, "other") == {OF_OTHER_JOB}
    loaded = Squad()
    loaded.load(RUNS, story.squad.all(RUNS))
    assert runs_in_progress(loaded) == {FIRST, SECOND}
    story.given(end_attempt(FIRST), at=121)
    assert runs_in_progress(story.squad) == {SECOND}
    story.given(end_attempt(SECOND), at=122)
    assert runs_in_progress(story.squad) == set()


def test_runs_of_a_job_are_found_in_drafts_on_top_of_each_other() -> None:
    story = a_squad().given(define(overlap="allow_all")).given(claim(), at=60).given(claim(), at=120)
    rows = story.squad.rows(RUNS)
    first, second = rows.get(FIRST), rows.get(SECOND)
    assert first
    assert second
    before = Draft(story.squad)
    before.layers[RUNS].put(FIRST, first.replaced(status="failed"))
    assert runs_in_progress(before) == {SECOND}
    after = Draft(before)
    after.layers[RUNS].put(SECOND, second.replaced(status="succeeded"))
    after.layers[RUNS].put("new", first.replaced(id="new"))
    assert runs_in_progress(after) == {"new"}
    before.roll_back()
    assert runs_in_progress(before) == {FIRST, SECOND}


def test_claim_of_a_tick_does_not_scan_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, jobs that are due at once would take quadratic time."""
    story = a_squad().given(define(), define("other")).given(claim(name="other"), at=60)
    scanned_tables = spy_on_scans(monkeypatch, Draft)
    story.given(claim(), at=60.01)
    assert runs_in_progress(story.squad) == {FIRST}
    assert RUNS.name not in scanned_tables


def test_search_for_due_jobs_and_runs_scans_no_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_squad().given(define(), define("other")).given(claim(name="other"), claim(), at=60)
    scanned_tables = spy_on_scans(monkeypatch, Squad)
    assert due_jobs(story.squad, moment(74.9)) == ([], [], moment(75))
    assert due_jobs(story.squad, moment(75)) == ([], [OF_OTHER_JOB, FIRST], moment(120))
    assert scanned_tables == []

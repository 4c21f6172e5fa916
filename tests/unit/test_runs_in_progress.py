"""The runs of a job that are under way are found by the job, however many others there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projections.runs import RUNS, run_id
from service.decide.jobs import due_jobs
from service.memory.draft import Draft
from service.memory.squad import Squad
from tests.unit.job_stories import JOB, a_squad, claim, define, ended
from tests.unit.support import moment

if TYPE_CHECKING:
    import pytest

    from projections.projection import Table
    from service.memory.state import State

FIRST, SECOND = (run_id(JOB, moment(minute * 60)) for minute in (1, 2))
OF_ANOTHER = run_id("other", moment(60))


def under_way(state: State, job: str = JOB) -> set[str]:
    return {row.id for row in state.runs_of(job)}


def watched(monkeypatch: pytest.MonkeyPatch, kind: type[State]) -> list[str]:
    """Which tables of such states are gone through from now on."""
    gone_through: list[str] = []
    read = kind.all

    def watch(self: State, table: Table[Any, Any]) -> Any:
        gone_through.append(table.name)
        return read(self, table)

    monkeypatch.setattr(kind, "all", watch)
    return gone_through


def test_are_known_from_their_start_to_their_end() -> None:
    story = a_squad().given(define(overlap="allow_all"), define("other"))
    assert under_way(story.squad) == set()
    story.given(claim(), claim(name="other"), at=60).given(claim(), at=120)
    assert under_way(story.squad) == under_way(story.squad.copy()) == {FIRST, SECOND}
    assert under_way(story.squad, "other") == {OF_ANOTHER}
    loaded = Squad()
    loaded.load(RUNS, story.squad.all(RUNS))
    assert under_way(loaded) == {FIRST, SECOND}
    story.given(ended(FIRST), at=121)
    assert under_way(story.squad) == {SECOND}
    story.given(ended(SECOND), at=122)
    assert under_way(story.squad) == set()


def test_are_known_in_a_batch_above_another_one() -> None:
    story = a_squad().given(define(overlap="allow_all")).given(claim(), at=60).given(claim(), at=120)
    rows = story.squad.rows(RUNS)
    first, second = rows.get(FIRST), rows.get(SECOND)
    assert first
    assert second
    before = Draft(story.squad)
    before.layers[RUNS].put(FIRST, first.replaced(status="failed"))
    assert under_way(before) == {SECOND}
    after = Draft(before)
    after.layers[RUNS].put(SECOND, second.replaced(status="succeeded"))
    after.layers[RUNS].put("new", first.replaced(id="new"))
    assert under_way(after) == {"new"}
    before.roll_back()
    assert under_way(before) == {FIRST, SECOND}


def test_are_found_by_a_claim_without_going_through_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or jobs that are due at once would take a time that grows with the square of their number."""
    story = a_squad().given(define(), define("other")).given(claim(name="other"), at=60)
    gone_through = watched(monkeypatch, Draft)
    story.given(claim(), at=60.01)
    assert under_way(story.squad) == {FIRST}
    assert RUNS.name not in gone_through


def test_are_found_by_a_look_for_what_is_due_without_going_through_all_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_squad().given(define(), define("other")).given(claim(name="other"), claim(), at=60)
    gone_through = watched(monkeypatch, Squad)
    assert due_jobs(story.squad, moment(74.9)) == ([], [], moment(75))
    assert due_jobs(story.squad, moment(75)) == ([], [OF_ANOTHER, FIRST], moment(120))
    assert gone_through == []

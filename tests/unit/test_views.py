"""What is shown of the state is found without going through more of it than must be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projections.operations import OPERATIONS
from service import views
from service.commands import FinishOperation, RegisterAgent, StartOperation
from service.memory.squad import Squad
from tests.unit.job_stories import a_squad, claim, define
from tests.unit.support import given

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from projections.projection import Table


def work_of(agent: str, number: int) -> StartOperation:
    return StartOperation(agent=agent, action="answer", resources={"emailId": f"{agent} {number}"})


def test_an_agents_operations_are_looked_for_until_all_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    story = given(RegisterAgent(name="cyd", role="agent"), work_of("ann", 0), work_of("bob", 1))
    finished = story.id
    story.given(work_of("bob", 2), work_of("ann", 3), *(work_of("dan", number) for number in range(4, 99)))
    story.given(FinishOperation(operation_id=finished, outcome="succeeded"))
    gone_through: list[str] = []
    read = Squad.all

    def watched(self: Squad, table: Table[Any, Any]) -> Iterator[Any]:
        for row in read(self, table):
            gone_through.append(row.agent)
            yield row

    monkeypatch.setattr(Squad, "all", watched)

    def found(agent: str) -> list[str]:
        gone_through.clear()
        return [row.resources["emailId"] for row in views.operations_of(story.squad, agent)]

    assert (found("bob"), len(gone_through)) == (["bob 2"], 2)
    assert (found("ann"), len(gone_through)) == (["ann 0", "ann 3"], 3)
    assert (found("cyd"), len(gone_through)) == ([], 0)
    assert (found("nobody"), len(gone_through)) == ([], 0)
    assert found("dan") == [f"dan {number}" for number in range(4, 99)]


def test_an_agents_operations_are_all_found_where_it_has_runs_as_well() -> None:
    story = a_squad().given(define(resources={"stock": "all"})).given(claim(), at=60)
    rows = list(story.squad.all(OPERATIONS))
    assert len(rows) == 1
    assert list(views.operations_of(story.squad, rows[0].agent)) == rows

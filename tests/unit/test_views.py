"""Views of the state scan no more of it than necessary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projections.operations import OPERATIONS
from service import views
from service.commands import FinishOperation, RegisterAgent, StartOperation
from service.memory.squad import Squad
from tests.unit.job_stories import a_squad, claim, define
from tests.unit.stories import given

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from projections.projection import Table


def operation_of(agent: str, number: int) -> StartOperation:
    return StartOperation(agent=agent, action="answer", resources={"emailId": f"{agent} {number}"})


def test_scan_for_an_agents_operations_ends_once_all_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    story = given(RegisterAgent(name="cyd", role="agent"), operation_of("ann", 0), operation_of("bob", 1))
    finished = story.id
    story.given(
        operation_of("bob", 2),
        operation_of("ann", 3),
        *(operation_of("dan", number) for number in range(4, 99)),
    )
    story.given(FinishOperation(operation_id=finished, outcome="succeeded"))
    scanned: list[str] = []
    original = Squad.all

    def spy(self: Squad, table: Table[Any, Any]) -> Iterator[Any]:
        for row in original(self, table):
            scanned.append(row.agent)
            yield row

    monkeypatch.setattr(Squad, "all", spy)

    def found(agent: str) -> list[str]:
        scanned.clear()
        return [row.resources["emailId"] for row in views.operations_of(story.squad, agent)]

    assert (found("bob"), len(scanned)) == (["bob 2"], 2)
    assert (found("ann"), len(scanned)) == (["ann 0", "ann 3"], 3)
    assert (found("cyd"), len(scanned)) == ([], 0)
    assert (found("nobody"), len(scanned)) == ([], 0)
    assert found("dan") == [f"dan {number}" for number in range(4, 99)]


def test_operations_of_an_agent_that_also_has_runs_are_all_found() -> None:
    story = a_squad().given(define(resources={"stock": "all"})).given(claim(), at=60)
    rows = list(story.squad.all(OPERATIONS))
    assert len(rows) == 1
    assert list(views.operations_of(story.squad, rows[0].agent)) == rows

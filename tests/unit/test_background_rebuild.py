"""The rebuild of outdated tables in the background: begun once, given up, tried again, told of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from eventstore.errors import StoreBusy
from projections import background_rebuild
from projections.agents import agents
from projections.background_rebuild import BackgroundRebuild
from projections.budgets import budgets
from projections.jobs import jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventstore.connection import Connection
    from projections.projection import Projection


class Rebuilds:
    """What was asked to be rebuilt, by name; a rebuild takes for ever unless told how it ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[list[str]] = []
        self.cancelled = 0
        self.end: Callable[[Sequence[Projection]], None] | None = None
        monkeypatch.setattr(background_rebuild, "rebuild", self._rebuild)

    async def _rebuild(self, _: str, __: str, projections: Sequence[Projection]) -> None:
        self.begun.append([projection.name for projection in projections])
        if self.end is not None:
            self.end(projections)
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class FoldInput:
    """A connection on which only that is said which others are told."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []

    async def execute(self, _: str, parameters: Sequence[Any]) -> None:
        self.names += parameters


NOBODY = cast("Connection", object())


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> Rebuilds:
    return Rebuilds(monkeypatch)


async def _turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_under_way_goes_on_where_it_is_wanted_and_else_is_given_up(
    rebuilds: Rebuilds,
) -> None:
    tables = BackgroundRebuild("", "squad")
    assert not tables
    await tables.start([agents, jobs])
    await _turns()
    await tables.start([jobs])
    await _turns()
    assert tables
    assert (tables.projections, rebuilds.begun, rebuilds.cancelled) == ([jobs], [["agents", "jobs"]], 0)
    await tables.start([jobs, budgets])
    await _turns()
    assert (rebuilds.begun[1:], rebuilds.cancelled) == ([["jobs", "budgets"]], 1)
    await tables.start([])
    assert (bool(tables), len(rebuilds.begun), rebuilds.cancelled) == (False, 2, 2)
    assert await tables.poll(NOBODY) == {}


async def test_what_has_ended_is_begun_anew(rebuilds: Rebuilds) -> None:
    rebuilds.end = lambda _: None
    tables = BackgroundRebuild("", "squad")
    for _ in range(2):
        await tables.start([jobs])
        await _turns()
    assert rebuilds.begun == [["jobs"], ["jobs"]]


async def test_what_cannot_be_rebuilt_keeps_no_other_from_it(rebuilds: Rebuilds) -> None:
    error = ValueError("no such job")

    def end(projections: Sequence[Projection]) -> None:
        if jobs in projections:
            raise error

    rebuilds.end = end
    tables = BackgroundRebuild("", "squad")
    await tables.start([agents, jobs, budgets])
    await _turns()
    assert rebuilds.begun == [["agents", "jobs", "budgets"], ["agents"], ["jobs"], ["budgets"]]
    assert await tables.poll(NOBODY) == {"jobs": error}
    assert await tables.poll(NOBODY) == {}


async def test_it_is_tried_again_and_ever_later(
    rebuilds: Rebuilds, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def end(_: Sequence[Projection]) -> None:
        if len(rebuilds.begun) <= 7:
            raise StoreBusy("another replay is in progress") if len(waits) % 2 else OSError("gone")

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    rebuilds.end = end
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await BackgroundRebuild("", "squad")._rebuild([jobs]) == {}
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert len(rebuilds.begun) == 8


@pytest.mark.usefixtures("rebuilds")
async def test_that_it_is_under_way_is_told_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0.0]
    monkeypatch.setattr(background_rebuild, "monotonic", lambda: 1_000.0 + times[-1])
    tables, told = BackgroundRebuild("", "squad"), FoldInput()
    await tables.start([jobs])
    for seconds, due in ((0.0, 1), (3.0, 1), (3.5, 2), (6.5, 2), (7.0, 3)):
        times.append(seconds)
        assert await tables.poll(cast("Connection", told)) == {}
        assert told.names == [["jobs"]] * due
    await tables.stop()

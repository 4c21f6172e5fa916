"""The rebuild of outdated tables in the background: started once, cancelled, retried, and reported."""

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
    """Replaces `rebuild`: records the names of its projections, and never ends unless `finish` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[list[str]] = []
        self.cancelled = 0
        self.finish: Callable[[Sequence[Projection]], None] | None = None
        monkeypatch.setattr(background_rebuild, "rebuild", self._rebuild)

    async def _rebuild(self, _: str, __: str, projections: Sequence[Projection]) -> None:
        self.started.append([projection.name for projection in projections])
        if self.finish is not None:
            self.finish(projections)
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class RecordingConnection:
    """A connection that records the names of the projections reported as in progress."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []

    async def execute(self, _: str, parameters: Sequence[Any]) -> None:
        self.names += parameters


NO_CONNECTION = cast("Connection", object())


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> Rebuilds:
    return Rebuilds(monkeypatch)


async def _run_pending_tasks() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_rebuild_in_progress_continues_if_it_covers_the_request_else_is_cancelled(
    rebuilds: Rebuilds,
) -> None:
    background = BackgroundRebuild("", "squad")
    assert not background
    await background.start([agents, jobs])
    await _run_pending_tasks()
    await background.start([jobs])
    await _run_pending_tasks()
    assert background
    assert (background.projections, rebuilds.started, rebuilds.cancelled) == (
        [jobs],
        [["agents", "jobs"]],
        0,
    )
    await background.start([jobs, budgets])
    await _run_pending_tasks()
    assert (rebuilds.started[1:], rebuilds.cancelled) == ([["jobs", "budgets"]], 1)
    await background.start([])
    assert (bool(background), len(rebuilds.started), rebuilds.cancelled) == (False, 2, 2)
    assert await background.poll(NO_CONNECTION) == {}


async def test_rebuild_that_has_ended_is_started_again_on_request(rebuilds: Rebuilds) -> None:
    rebuilds.finish = lambda _: None
    background = BackgroundRebuild("", "squad")
    for _ in range(2):
        await background.start([jobs])
        await _run_pending_tasks()
    assert rebuilds.started == [["jobs"], ["jobs"]]


async def test_projection_that_cannot_be_rebuilt_does_not_affect_the_others(rebuilds: Rebuilds) -> None:
    error = ValueError("no such job")

    def finish(projections: Sequence[Projection]) -> None:
        if jobs in projections:
            raise error

    rebuilds.finish = finish
    background = BackgroundRebuild("", "squad")
    await background.start([agents, jobs, budgets])
    await _run_pending_tasks()
    assert rebuilds.started == [["agents", "jobs", "budgets"], ["agents"], ["jobs"], ["budgets"]]
    assert await background.poll(NO_CONNECTION) == {"jobs": error}
    assert await background.poll(NO_CONNECTION) == {}


async def test_rebuild_is_retried_with_growing_delays(
    rebuilds: Rebuilds, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def finish(_: Sequence[Projection]) -> None:
        if len(rebuilds.started) <= 7:
            raise StoreBusy("another replay is in progress") if len(waits) % 2 else OSError("gone")

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    rebuilds.finish = finish
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await BackgroundRebuild("", "squad")._rebuild([jobs]) == {}
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert len(rebuilds.started) == 8


@pytest.mark.usefixtures("rebuilds")
async def test_rebuild_in_progress_is_reported_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0.0]
    monkeypatch.setattr(background_rebuild, "monotonic", lambda: 1_000.0 + times[-1])
    background, connection = BackgroundRebuild("", "squad"), RecordingConnection()
    await background.start([jobs])
    for seconds, due in ((0.0, 1), (3.0, 1), (3.5, 2), (6.5, 2), (7.0, 3)):
        times.append(seconds)
        assert await background.poll(cast("Connection", connection)) == {}
        assert connection.names == [["jobs"]] * due
    await background.stop()

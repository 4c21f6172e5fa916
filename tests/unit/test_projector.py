"""The positions of the projections, and when each last had everything in the log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import log
from eventstore.listener import Hints
from eventstore.recorded import Recorded
from projections import projector as module
from projections.agents import agents
from projections.messages import messages
from projections.progress import Progress
from projections.projector import Projector
from tests.unit.stories import START

if TYPE_CHECKING:
    from collections.abc import Sequence

    from projections.projection import Projection

LONG_AGO, NOW = 100.0, 200.0


def events(*positions: int) -> list[Recorded]:
    return [
        Recorded(position, "id", "s", 1, "message_sent", 1, "{}", "ann", None, "c", None, START, b"")
        for position in positions
    ]


class FakePageFolder:
    """Folds every event, except a poisoned one in one projection."""

    poison: tuple[str, int] | None = None

    def __init__(self, *_: object, **__: object) -> None: ...

    async def advance(
        self, _: object, members: Sequence[Projection], page: Sequence[Recorded], *__: object
    ) -> None:
        positions = [recorded.position for recorded in page]
        for member in members:
            if self.poison and member.name == self.poison[0] and self.poison[1] in positions:
                raise ArithmeticError("a poisoned event")


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The events in the log."""
    stored = events(1, 2, 3, 4)

    async def read_after(_: object, position: int, limit: int) -> list[Recorded]:
        return [recorded for recorded in stored if recorded.position > position][:limit]

    monkeypatch.setattr(log, "read_after", read_after)
    return stored


@pytest.fixture
def projector(monkeypatch: pytest.MonkeyPatch) -> Projector:
    """A projector of two projections that last had everything long ago."""
    monkeypatch.setattr(module, "PageFolder", FakePageFolder)
    monkeypatch.setattr(FakePageFolder, "poison", None)
    monkeypatch.setattr(module, "monotonic", lambda: NOW)
    projector = Projector("", "squad", Hints(), [agents, messages])
    projector.positions = {"agents": 2, "messages": 2}
    projector.caught_up_at = {"agents": LONG_AGO, "messages": LONG_AGO}
    return projector


def connection() -> Any:
    async def execute(*_: object) -> Any:
        return SimpleNamespace(rowcount=1)

    return SimpleNamespace(execute=execute)


async def advance(projector: Projector) -> bool:
    return await projector._advance_from_log(connection())


@pytest.mark.usefixtures("stored")
class TestAdvancingFromLog:
    async def test_projections_are_caught_up_after_a_page_that_reaches_the_end(
        self, projector: Projector
    ) -> None:
        assert await advance(projector)
        assert projector.positions == {"agents": 4, "messages": 4}
        assert projector.caught_up_at == {"agents": NOW, "messages": NOW}

    async def test_projections_are_caught_up_after_an_empty_page(self, projector: Projector) -> None:
        projector.positions = {"agents": 4, "messages": 4}
        assert not await advance(projector)
        assert projector.caught_up_at == {"agents": NOW, "messages": NOW}

    async def test_projections_are_not_caught_up_after_a_full_page(
        self, projector: Projector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(projector._page_sizer, "events", 2)
        await advance(projector)
        assert projector.positions == {"agents": 4, "messages": 4}
        assert projector.caught_up_at == {"agents": LONG_AGO, "messages": LONG_AGO}

    async def test_projection_that_stops_within_a_page_is_not_caught_up(
        self, projector: Projector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FakePageFolder, "poison", ("messages", 4))
        await advance(projector)
        assert projector.positions == {"agents": 4, "messages": 3}
        assert projector.failed.keys() == {"messages"}
        assert projector.caught_up_at == {"agents": NOW, "messages": LONG_AGO}

    async def test_projection_that_is_behind_advances_no_further_than_the_next_one(
        self, projector: Projector
    ) -> None:
        """They continue from there as one group, so the events beyond were not folded."""
        projector.positions = {"agents": 3, "messages": 2}
        await advance(projector)
        assert projector.positions == {"agents": 3, "messages": 3}
        assert projector.caught_up_at == {"agents": LONG_AGO, "messages": LONG_AGO}
        await advance(projector)
        assert projector.caught_up_at == {"agents": NOW, "messages": NOW}


class TestAdvancingFromMemory:
    async def advance(self, projector: Projector, hinted: int) -> bool:
        projector.active = True
        projector._hints.position = hinted
        projector.observe(events(3, 4), [])
        return await projector._advance_from_memory(connection())

    @pytest.mark.parametrize(("hinted", "caught_up_at"), [(4, NOW), (5, LONG_AGO)])
    async def test_projections_are_caught_up_unless_more_was_announced(
        self, projector: Projector, hinted: int, caught_up_at: float
    ) -> None:
        assert await self.advance(projector, hinted)
        assert projector.positions == {"agents": 4, "messages": 4}
        assert projector.caught_up_at == {"agents": caught_up_at, "messages": caught_up_at}

    async def test_nothing_is_folded_when_a_projection_has_stopped(self, projector: Projector) -> None:
        projector.failed = {"messages": (3, "a fault")}
        assert not await self.advance(projector, 4)
        assert projector.positions == {"agents": 2, "messages": 2}

    async def test_nothing_is_folded_when_one_projection_is_ahead(self, projector: Projector) -> None:
        projector.positions = {"agents": 3, "messages": 2}
        assert not await self.advance(projector, 4)
        assert projector.positions == {"agents": 3, "messages": 2}

    def test_large_events_shrink_the_next_page_of_the_log(self, projector: Projector) -> None:
        """If they are too many to be kept, they will have to be read."""
        usual, large = projector._page_sizer.events, "x" * 1_000_000
        projector.active = True
        projector.observe([one._replace(data=large) for one in events(*range(3, 23))], [])
        assert projector._page_sizer.events < usual


async def test_restart_forgets_what_was_known_about_the_tables(
    projector: Projector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read_progress(*_: object) -> Progress:
        return Progress({"agents": 1, "messages": 0}, 7, [])

    monkeypatch.setattr(module, "read_progress", read_progress)
    projector.active = True
    projector.observe(events(3, 4), [])
    projector.failed = {"messages": (3, "a fault")}
    folder, waiter = projector._folder, projector.advanced.waiter()
    await projector._restart(connection())
    assert (projector.failed, len(projector._recent), projector._generation) == ({}, 0, 7)
    assert projector._folder is not folder
    assert projector.positions == {"agents": 1, "messages": 0}
    assert projector.caught_up_at == {"agents": NOW, "messages": NOW}
    assert waiter.is_set()

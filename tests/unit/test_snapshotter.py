"""When a process checks for snapshots that are due, and what it stores."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from eventstore.recorded import Head
from service import snapshotter as module
from service.history import snapshots
from service.memory.squad import Squad
from service.snapshotter import RETRY_SECONDS, Snapshotter
from tests.unit.stories import START

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD, DISTANCE = 100, 50


def batch_up_to(position: int) -> Any:
    """A batch that ends at this position."""
    return [SimpleNamespace(position=position)]


def squad_at(position: int) -> Squad:
    squad = Squad()
    squad.head = Head(position, b"", START)
    return squad


class FakeDatabase:
    """Stores snapshots in memory. The third attempt to connect cancels the snapshotter."""

    def __init__(self) -> None:
        self.pgconn = self
        self.is_locked = False
        self.error: Exception | None = None
        self.positions: list[int] = []
        self.stored: list[tuple[int, int]] = []
        self.opened = 0
        self.attempts = 0

    async def connect(self, *_: object, **__: object) -> FakeDatabase:
        self.attempts += 1
        if self.attempts == 3:
            raise asyncio.CancelledError
        if self.error:
            raise self.error
        self.opened += 1
        return self

    def finish(self) -> None:
        self.opened -= 1


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDatabase]:
    database = FakeDatabase()

    async def try_lock(*_: object) -> bool:
        return not database.is_locked

    async def nothing(*_: object) -> None: ...

    async def positions(_: object) -> list[int]:
        return database.positions

    async def store(_: object, squad: Squad, known: int) -> None:
        database.stored.append((squad.head.position, known))
        database.positions.append(squad.head.position)

    monkeypatch.setattr(module, "connect", database.connect)
    monkeypatch.setattr(module, "one_value", try_lock)
    monkeypatch.setattr(module, "load_open", nothing)
    monkeypatch.setattr(snapshots, "prune", nothing)
    monkeypatch.setattr(snapshots, "positions", positions)
    monkeypatch.setattr(snapshots, "store", store)
    monkeypatch.setattr(snapshots, "distance", lambda _: DISTANCE)
    yield database
    assert not database.opened


@pytest.fixture
def snapshotter() -> Snapshotter:
    writer: Any = SimpleNamespace(ready=True, squad=squad_at(HEAD))
    return Snapshotter("", "squad", writer)


async def test_process_without_the_lock_checks_again_only_when_the_next_is_due(
    database: FakeDatabase, snapshotter: Snapshotter
) -> None:
    database.is_locked = True
    snapshotter.reschedule()
    await snapshotter._take_due()
    assert not snapshotter._due.is_set()
    snapshotter.observe(batch_up_to(HEAD + DISTANCE - 1))
    assert not snapshotter._due.is_set()
    snapshotter.observe(batch_up_to(HEAD + DISTANCE))
    assert snapshotter._due.is_set()
    assert not database.stored


async def test_squad_is_stored_as_of_one_position_while_it_advances(
    database: FakeDatabase, snapshotter: Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If anybody is forgotten after that position, the snapshot must not be stored."""
    database.positions = [HEAD - DISTANCE]

    async def advance(*_: object) -> None:
        snapshotter._writer.squad.head = Head(HEAD + 7, b"", START)

    monkeypatch.setattr(module, "load_open", advance)
    await snapshotter._take_due()
    assert database.stored == [(HEAD, HEAD)]


async def test_snapshot_is_not_stored_before_it_is_due(
    database: FakeDatabase, snapshotter: Snapshotter
) -> None:
    database.positions = [HEAD - DISTANCE + 1]
    await snapshotter._take_due()
    assert not database.stored
    snapshotter.observe(batch_up_to(HEAD))
    assert not snapshotter._due.is_set()
    snapshotter.observe(batch_up_to(HEAD + 1))
    assert snapshotter._due.is_set()


@pytest.mark.parametrize(
    ("error", "text"),
    [(OSError("gone"), "cannot be taken for now"), (ArithmeticError("a fault"), "taking snapshots failed")],
)
async def test_snapshotter_waits_after_a_failure_before_it_retries(
    database: FakeDatabase,
    snapshotter: Snapshotter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    text: str,
) -> None:
    database.error = error
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await snapshotter.run()
    assert delays == [RETRY_SECONDS] * 2
    assert text in caplog.text

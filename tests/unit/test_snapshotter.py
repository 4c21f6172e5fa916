"""When a process looks for snapshots that are due, and what it stores."""

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
from tests.unit.support import START

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD, DISTANCE = 100, 50


def at(position: int) -> Any:
    """A batch that ends there."""
    return [SimpleNamespace(position=position)]


def squad_at(position: int) -> Squad:
    squad = Squad()
    squad.head = Head(position, b"", START)
    return squad


class Database:
    """Where snapshots are stored. The service stops at the third attempt to connect."""

    def __init__(self) -> None:
        self.pgconn = self
        self.is_taken = False
        self.error: Exception | None = None
        self.positions: list[int] = []
        self.stored: list[tuple[int, int]] = []
        self.opened = 0
        self.attempts = 0

    async def connect(self, *_: object, **__: object) -> Database:
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
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    database = Database()

    async def try_lock(*_: object) -> bool:
        return not database.is_taken

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
def taking() -> Snapshotter:
    writer: Any = SimpleNamespace(ready=True, squad=squad_at(HEAD))
    return Snapshotter("", "squad", writer)


async def test_whoever_leaves_it_to_another_process_looks_again_only_when_the_next_is_due(
    database: Database, taking: Snapshotter
) -> None:
    database.is_taken = True
    taking.reschedule()
    await taking._take_due()
    assert not taking._due.is_set()
    taking.observe(at(HEAD + DISTANCE - 1))
    assert not taking._due.is_set()
    taking.observe(at(HEAD + DISTANCE))
    assert taking._due.is_set()
    assert not database.stored


async def test_the_squad_is_stored_as_it_was_at_one_position_while_it_lives_on(
    database: Database, taking: Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is forgotten after that position keeps the snapshot from being stored."""
    database.positions = [HEAD - DISTANCE]

    async def live_on(*_: object) -> None:
        taking._writer.squad.head = Head(HEAD + 7, b"", START)

    monkeypatch.setattr(module, "load_open", live_on)
    await taking._take_due()
    assert database.stored == [(HEAD, HEAD)]


async def test_none_is_stored_before_it_is_due(database: Database, taking: Snapshotter) -> None:
    database.positions = [HEAD - DISTANCE + 1]
    await taking._take_due()
    assert not database.stored
    taking.observe(at(HEAD))
    assert not taking._due.is_set()
    taking.observe(at(HEAD + 1))
    assert taking._due.is_set()


@pytest.mark.parametrize(
    ("error", "text"),
    [(OSError("gone"), "cannot be taken for now"), (ArithmeticError("a fault"), "taking snapshots failed")],
)
async def test_after_a_failure_it_waits_before_it_tries_again(
    database: Database,
    taking: Snapshotter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    text: str,
) -> None:
    database.error = error
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await taking.run()
    assert slept == [RETRY_SECONDS] * 2
    assert text in caplog.text

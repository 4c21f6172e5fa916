"""Snapshots are taken automatically: at the head and in the past, by one of several processes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from benchmarks.history import copy_in
from benchmarks.simulated_squad import SimulatedSquad
from eventstore import log
from eventstore.listener import Hints
from projections.operations import OPERATIONS
from service import snapshotter
from service.commands import StartOperation
from service.history import folding, snapshots
from service.history.time_travel import check_snapshots
from service.snapshotter import Snapshotter
from tests.support.components import SCHEMA, backend_pids, connected, running, running_writer, submit
from tests.support.random_history import RandomHistory
from tests.support.squads import contents
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection
    from service.writing.writer import Writer

DISTANCE = 50


@pytest.fixture(autouse=True)
def _frequent_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "distance", lambda _: DISTANCE)
    monkeypatch.setattr(folding, "PAGE_EVENTS", 20)
    monkeypatch.setattr(snapshotter, "RETRY_SECONDS", 0.05)


@asynccontextmanager
async def _process(database: str, hints: Hints | None = None) -> AsyncIterator[Writer]:
    """Run a writer and a snapshotter, like a process does, with no snapshots of the writer's start left."""
    async with running_writer(database, hints=hints) as writer:
        async with connected(database) as connection:
            await connection.execute("TRUNCATE snapshots")
        taker = Snapshotter(database, SCHEMA, writer)
        writer.observers.append(taker.observe)
        async with running(taker.run()):
            yield writer


async def _fill(connection: Connection, events: int) -> None:
    simulated = SimulatedSquad(seed=9, open_things=10)
    now = await log.clock(connection) - timedelta(hours=2)
    page = simulated.first(now)
    while len(page) < events:
        page += simulated.more(now := now + timedelta(seconds=2))
    await copy_in(connection, page)


async def _taken(connection: Connection, at_least: int) -> list[int]:
    async def enough() -> list[int]:
        taken = await snapshots.positions(connection)
        return taken if len(taken) >= at_least else []

    return await eventually(enough, within_seconds=20)


async def test_snapshot_is_taken_whenever_the_log_has_grown_by_the_distance(
    database: str, connection: Connection
) -> None:
    async with _process(database) as writer:
        history = RandomHistory(seed=41)
        for count in range(1, 5):
            before = writer.squad.head.position
            while writer.squad.head.position < before + DISTANCE:
                await history.submit_commands(writer, 5)
            await _taken(connection, count)
        taken = await snapshots.positions(connection)
        assert all(later - earlier >= DISTANCE for earlier, later in pairwise([0, *taken]))
        assert len(taken) <= writer.squad.head.position // DISTANCE
        live = writer.squad.copy()
    assert await check_snapshots(connection) == []
    assert contents(live) == contents(writer.squad)
    await assert_log_is_sound(database)


async def test_no_snapshot_is_attempted_while_the_distance_grows_with_the_log(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event opens an operation, so the distance grows with the log, and no snapshot is ever due."""
    monkeypatch.setattr(snapshots, "distance", lambda squad: DISTANCE + len(squad.tables[OPERATIONS.name]))
    attempts: list[int] = []
    original = Snapshotter._at_the_head

    async def count_attempts(self: Snapshotter, connection: Connection) -> None:
        attempts.append(self._writer.squad.head.position)
        await original(self, connection)

    monkeypatch.setattr(Snapshotter, "_at_the_head", count_attempts)
    async with _process(database) as writer:
        await eventually(lambda: bool(attempts))
        for number in range(3 * DISTANCE):
            await submit(writer, StartOperation(agent="ann", action="x", resources={"n": str(number)}))
        assert len(attempts) == 1
        assert await snapshots.positions(connection) == []


async def test_only_one_of_two_processes_takes_snapshots(database: str, connection: Connection) -> None:
    hints = Hints()
    async with _process(database, hints) as one, _process(database, hints) as other:
        for seed, writer in ((42, one), (43, other), (44, one), (45, other)):
            await RandomHistory(seed=seed).submit_commands(writer, 60)
        taken = await _taken(connection, 2)
        assert all(later - earlier >= DISTANCE for earlier, later in pairwise([0, *taken]))
    assert await check_snapshots(connection) == []


async def test_remaining_process_continues_to_take_snapshots(database: str, connection: Connection) -> None:
    hints = Hints()
    async with _process(database, hints) as one:
        async with _process(database, hints) as other:
            await RandomHistory(seed=46).submit_commands(other, 100)
            await _taken(connection, 1)
        before = await snapshots.positions(connection)
        await RandomHistory(seed=47).submit_commands(one, 150)
        await _taken(connection, len(before) + 1)
    assert await check_snapshots(connection) == []


async def test_snapshots_are_taken_of_a_past_that_has_none(database: str, connection: Connection) -> None:
    await _fill(connection, 2_000)
    async with _process(database) as writer:

        async def has_snapshots_everywhere() -> bool:
            taken = [0, *await snapshots.positions(connection), writer.squad.head.position]
            return all(later - earlier < 2 * DISTANCE + 20 for earlier, later in pairwise(taken))

        await eventually(has_snapshots_everywhere, within_seconds=60)
    assert await check_snapshots(connection) == []


async def test_snapshot_at_the_head_is_taken_before_the_past_is_complete(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(connection, 2_000)
    monkeypatch.setattr(snapshotter, "PAUSE_FACTOR", 30.0)
    async with _process(database) as writer:
        first = (await _taken(connection, 1))[-1]
        assert first > 1_900
        await RandomHistory(seed=48).submit_commands(writer, 100)

        async def has_newer_snapshot() -> bool:
            taken = await snapshots.positions(connection)
            return taken[-1] > first

        await eventually(has_newer_snapshot)
        # Most of the past has no snapshots yet.
        assert len(await snapshots.positions(connection)) < 30


async def test_snapshots_are_taken_again_after_they_were_deleted_or_could_not_be_stored(
    database: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with _process(database) as writer:
        history = RandomHistory(seed=49)
        await history.submit_commands(writer, 100)
        await _taken(connection, 1)
        await connection.execute("TRUNCATE snapshots")
        await history.submit_commands(writer, 100)
        await _taken(connection, 1)
        await connection.execute("ALTER TABLE snapshots RENAME TO elsewhere")
        await history.submit_commands(writer, 100)
        await eventually(lambda: "snapshots cannot be taken" in caplog.text)
        await connection.execute("ALTER TABLE elsewhere RENAME TO snapshots")
        before = await snapshots.positions(connection)
        await history.submit_commands(writer, 100)
        await _taken(connection, len(before) + 1)
    assert await check_snapshots(connection) == []


async def test_no_connection_stays_open_between_snapshots(database: str, connection: Connection) -> None:
    async with _process(database) as writer:
        await RandomHistory(seed=50).submit_commands(writer, 100)
        await _taken(connection, 1)

        async def no_connection_is_open() -> bool:
            return not await backend_pids(connection, "squad snapshots")

        await eventually(no_connection_is_open)

"""kill -9 of the service while it stores snapshots: those that are stored are valid."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import aiohttp
import pytest

from benchmarks.history import fill
from service.history import snapshots
from service.history.time_travel import check_snapshots, state_at
from service.memory.squad import Squad
from tests.support.components import connected, lock_is_free
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.squads import contents
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection

pytestmark = pytest.mark.faults

EVENTS = 16_000
KILLS = 2


async def test_service_killed_while_it_folds_a_long_log_leaves_only_valid_snapshots(
    empty_database: str,
) -> None:
    async for _ in fill(empty_database, "squad", EVENTS):
        pass
    async with squad_up(dsn=empty_database) as service, connected(empty_database) as connection:
        for kill in range(KILLS):
            await service.kill()
            await connection.execute("TRUNCATE snapshots")
            await connection.execute("UPDATE projections SET fold_version = 0")
            starting = asyncio.create_task(service.start())

            async def has_snapshots(at_least: int = kill + 1) -> bool:
                return len(await snapshots.positions(connection)) >= at_least

            await eventually(has_snapshots, within_seconds=30, describe="the start stores snapshots")
            await service.kill()
            with suppress(AssertionError):
                await starting
            await eventually(lambda: lock_is_free(connection))
            assert await check_snapshots(connection) == []
        await service.start()
        await eventually(service.is_ready, within_seconds=30)
        async with aiohttp.request("GET", f"{service.url}/api/v1/state?at={EVENTS - 1}") as response:
            assert (response.status, (await response.json())["position"]) == (200, EVENTS - 1)


async def test_snapshots_cover_the_log_when_a_process_is_killed_repeatedly_under_load(
    empty_database: str,
) -> None:
    async for _ in fill(empty_database, "squad", EVENTS):
        pass
    async with (
        squad_up(dsn=empty_database, SQUAD_DAILY_TOKENS="1000000") as first,
        squad_up(dsn=empty_database, SQUAD_DAILY_TOKENS="1000000") as second,
        connected(empty_database) as connection,
    ):
        await connection.execute("TRUNCATE snapshots")
        load = Load([first, second])
        async with load.running():
            for _ in range(KILLS):
                await load.wait_for_answers(500)
                await first.kill()
                await load.wait_for_answers(500)
                await first.start()
            # First at the head, then along the past log.
            await eventually(
                lambda: _covers_the_log(connection), within_seconds=60, describe="snapshots cover the log"
            )
        assert await check_snapshots(connection) == []
        squad = await state_at(connection, EVENTS)
        stored = await snapshots.nearest(connection, EVENTS)
        assert stored
        assert stored.head.position > EVENTS - 3 * snapshots.INTERVAL_EVENTS
        await connection.execute("TRUNCATE snapshots")
        assert contents(await state_at(connection, EVENTS)) == contents(squad) != contents(Squad())


async def _covers_the_log(connection: Connection) -> bool:
    taken = await snapshots.positions(connection)
    return len(taken) >= EVENTS // snapshots.INTERVAL_EVENTS

"""Postgres, or the service, killed with -9 under load: what was acknowledged is there, and once."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import pytest

from tests.support.embedded import kill_postmaster, postmaster_pid, server_in
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

KILLS = 3
WELL_AGAIN_WITHIN_SECONDS = 20.0

SOME_DENIED = {"SQUAD_DAILY_TOKENS": "1000000"}
"""A budget that a load uses up on the way, so that both answers to a reservation are seen."""


async def test_postgres_killed_under_load_comes_back_with_all_that_was_acknowledged(
    data_folder: Path,
) -> None:
    async with squad_up(data=data_folder, **SOME_DENIED) as service:
        load = Load([service])
        async with load.running():
            await load.more()
            for _ in range(KILLS):
                await kill_postgres_and_wait(data_folder, service, load)
        async with server_in(data_folder) as dsn:
            await load.assert_kept(dsn)


async def test_a_service_killed_under_load_comes_back_with_all_that_was_acknowledged(
    data_folder: Path,
) -> None:
    async with squad_up(data=data_folder, **SOME_DENIED) as service:
        load = Load([service])
        async with load.running():
            await load.more()
            for _ in range(KILLS):
                killed = monotonic()
                await service.kill()
                await service.start()
                await is_well(service, load, since=killed)
        await load.assert_answers_stand()
        async with server_in(data_folder) as dsn:
            await load.assert_kept(dsn)


async def test_a_service_killed_under_load_leaves_the_other_one_in_the_folder_working(
    data_folder: Path,
) -> None:
    async with (
        squad_up(data=data_folder, **SOME_DENIED) as first,
        squad_up(data=data_folder, **SOME_DENIED) as second,
    ):
        load = Load([first, second])
        async with load.running():
            await load.more()
            killed = monotonic()
            await first.kill()
            await is_well(second, load, since=killed)
            # Whoever is left takes care of the server as well, also if the other one had started it.
            await kill_postgres_and_wait(data_folder, second, load)
            await first.start()
            await is_well(first, load, since=monotonic())
        async with server_in(data_folder) as dsn:
            await load.assert_kept(dsn)


async def kill_postgres_and_wait(folder: Path, service: ServiceProcess, load: Load) -> None:
    killed = monotonic()
    pid = kill_postmaster(folder)
    await eventually(
        lambda: postmaster_pid(folder) not in (None, pid),
        within_seconds=WELL_AGAIN_WITHIN_SECONDS,
        describe="another postmaster runs",
    )
    await is_well(service, load, since=killed)


async def is_well(service: ServiceProcess, load: Load, *, since: float) -> None:
    """Waits until requests are answered and the service calls itself ready, and holds both to the bound."""
    await load.more(100, within_seconds=WELL_AGAIN_WITHIN_SECONDS)
    await eventually(service.is_ready, within_seconds=WELL_AGAIN_WITHIN_SECONDS)
    assert monotonic() - since < WELL_AGAIN_WITHIN_SECONDS

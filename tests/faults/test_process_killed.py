"""Postgres, or the service, killed with -9 under load: what was acknowledged is there, and once."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.support.embedded import kill_postmaster, postmaster_pid, server_in
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
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
        trial = Trial(f"kill -9 of Postgres, {KILLS} times", WELL_AGAIN_WITHIN_SECONDS, Load([service]))
        async with trial.running():
            for moment in random_moments():
                await moment
                await kill_postgres_and_wait(trial, data_folder, service)
        async with server_in(data_folder) as dsn:
            await trial.judge(dsn)


async def test_a_service_killed_under_load_comes_back_with_all_that_was_acknowledged(
    data_folder: Path,
) -> None:
    async with squad_up(data=data_folder, **SOME_DENIED) as service:
        load = Load([service])
        trial = Trial(f"kill -9 of the service, {KILLS} times", WELL_AGAIN_WITHIN_SECONDS, load)
        async with trial.running():
            for moment in random_moments():
                await moment
                with trial.cause():
                    await service.kill()
                await service.start()
                await trial.well(service)
        await load.assert_answers_stand()
        async with server_in(data_folder) as dsn:
            await trial.judge(dsn)


async def test_a_service_killed_under_load_leaves_the_other_one_in_the_folder_working(
    data_folder: Path,
) -> None:
    async with (
        squad_up(data=data_folder, **SOME_DENIED) as first,
        squad_up(data=data_folder, **SOME_DENIED) as second,
    ):
        load = Load([first, second])
        trial = Trial("kill -9 of one of two services, then of Postgres", WELL_AGAIN_WITHIN_SECONDS, load)
        async with trial.running():
            with trial.cause():
                await first.kill()
            await trial.well(second)
            # Whoever is left takes care of the server as well, also if the other one had started it.
            await kill_postgres_and_wait(trial, data_folder, second)
            await first.start()
            await trial.well(first, second)
        async with server_in(data_folder) as dsn:
            await trial.judge(dsn)


async def kill_postgres_and_wait(trial: Trial, folder: Path, service: ServiceProcess) -> None:
    with trial.cause():
        pid = kill_postmaster(folder)
    await eventually(
        lambda: postmaster_pid(folder) not in (None, pid),
        within_seconds=WELL_AGAIN_WITHIN_SECONDS,
        describe="another postmaster runs",
    )
    await trial.well(service)


def random_moments() -> Iterator[asyncio.Future[None]]:
    """Waits of any length: in the middle of whatever they are at."""
    random = Random(3)
    for _ in range(KILLS):
        yield asyncio.ensure_future(asyncio.sleep(random.uniform(0.0, 0.3)))

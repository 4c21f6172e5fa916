"""kill -9 of Postgres or of the service under load: every acknowledged write is in the log once."""

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
RECOVERY_SECONDS = 20.0

SMALL_BUDGET = {"SQUAD_DAILY_TOKENS": "1000000"}
"""A budget that the load exhausts, so that reservations are both granted and denied."""


async def test_kill_of_postgres_under_load_loses_nothing_acknowledged(
    data_folder: Path,
) -> None:
    async with squad_up(data=data_folder, **SMALL_BUDGET) as service:
        trial = Trial(f"kill -9 of Postgres, {KILLS} times", RECOVERY_SECONDS, Load([service]))
        async with trial.running():
            for pause in random_pauses():
                await pause
                await kill_postgres_and_wait(trial, data_folder, service)
        async with server_in(data_folder) as dsn:
            await trial.verify(dsn)


async def test_kill_of_the_service_under_load_loses_nothing_acknowledged(
    data_folder: Path,
) -> None:
    async with squad_up(data=data_folder, **SMALL_BUDGET) as service:
        load = Load([service])
        trial = Trial(f"kill -9 of the service, {KILLS} times", RECOVERY_SECONDS, load)
        async with trial.running():
            for pause in random_pauses():
                await pause
                with trial.fault_injection():
                    await service.kill()
                await service.start()
                await trial.wait_until_recovered(service)
        await load.assert_retries_get_same_answers()
        async with server_in(data_folder) as dsn:
            await trial.verify(dsn)


async def test_other_service_on_the_data_folder_keeps_working_when_one_is_killed(
    data_folder: Path,
) -> None:
    async with (
        squad_up(data=data_folder, **SMALL_BUDGET) as first,
        squad_up(data=data_folder, **SMALL_BUDGET) as second,
    ):
        load = Load([first, second])
        trial = Trial("kill -9 of one of two services, then of Postgres", RECOVERY_SECONDS, load)
        async with trial.running():
            with trial.fault_injection():
                await first.kill()
            await trial.wait_until_recovered(second)
            # The remaining one also restarts the server, even if the other one had started it.
            await kill_postgres_and_wait(trial, data_folder, second)
            await first.start()
            await trial.wait_until_recovered(first, second)
        async with server_in(data_folder) as dsn:
            await trial.verify(dsn)


async def kill_postgres_and_wait(trial: Trial, folder: Path, service: ServiceProcess) -> None:
    with trial.fault_injection():
        pid = kill_postmaster(folder)
    await eventually(
        lambda: postmaster_pid(folder) not in (None, pid),
        within_seconds=RECOVERY_SECONDS,
        describe="another postmaster runs",
    )
    await trial.wait_until_recovered(service)


def random_pauses() -> Iterator[asyncio.Future[None]]:
    """Random pauses, so that kills hit the process at arbitrary moments."""
    random = Random(3)
    for _ in range(KILLS):
        yield asyncio.ensure_future(asyncio.sleep(random.uniform(0.0, 0.3)))

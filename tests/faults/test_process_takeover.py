"""One of two processes stops, is killed or is suspended, and the other one carries on."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.components import connected
from tests.support.load import Load
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.process import squad_up
from tests.support.signals import suspended
from tests.support.trial import Trial
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

TAKEN_OVER_WITHIN_SECONDS = 3.0
STOP_TIMEOUT_SECONDS = 5.0

SUSPENSION_RECOVERY_SECONDS = 20.0
"""The database ends an idle transaction after 10 seconds; then others get the lock."""


async def test_standby_projector_takes_over_when_the_active_one_is_killed(database: str) -> None:
    async with squad_up(dsn=database) as first, connected(database) as connection:
        await eventually(lambda: is_active_projector(first))
        async with squad_up(dsn=database) as second:
            assert not await is_active_projector(second)
            log_writer = LogWriter(connection)
            await log_writer.catch_up()
            await first.kill()
            await log_writer.append(
                agent_registered("alice"), message_sent("who is going to write this down?")
            )
            await eventually(lambda: projected_to_head(database), within_seconds=TAKEN_OVER_WITHIN_SECONDS)
            assert await is_active_projector(second)


async def test_one_of_two_processes_stops_within_five_seconds_under_load_and_loses_nothing(
    database: str,
) -> None:
    async with squad_up(dsn=database) as stopping, squad_up(dsn=database) as remaining:
        trial = Trial(
            "SIGTERM to one of two services", TAKEN_OVER_WITHIN_SECONDS, Load([stopping, remaining])
        )
        async with trial.running():
            signalled = monotonic()
            with trial.fault_injection():
                assert await stopping.stop(within_seconds=STOP_TIMEOUT_SECONDS) == 0
            assert monotonic() - signalled < STOP_TIMEOUT_SECONDS
            await trial.wait_until_recovered(remaining)
        await trial.verify(database)


async def test_only_process_stops_within_five_seconds_under_load_and_loses_nothing(
    database: str,
) -> None:
    async with squad_up(dsn=database) as service:
        load = Load([service])
        async with load.running():
            await load.wait_for_answers()
            assert await service.stop(within_seconds=STOP_TIMEOUT_SECONDS) == 0
            await service.start()
            await load.wait_for_answers()
        await load.assert_log_matches_answers(database)


async def test_suspended_process_blocks_the_other_one_only_for_seconds(database: str) -> None:
    async with squad_up(dsn=database) as frozen, squad_up(dsn=database) as active:
        load, other = Load([frozen], "frozen"), Load([active], "active")
        trial = Trial("SIGSTOP of one of two services", SUSPENSION_RECOVERY_SECONDS, load, other)
        async with trial.running():
            # It may be suspended while it holds the log's lock.
            with trial.fault_injection(), suspended(psutil.Process(frozen.pid)):
                await other.wait_for_answers(within_seconds=SUSPENSION_RECOVERY_SECONDS)
            await trial.wait_until_recovered(frozen, active)
        await trial.verify(database)


async def is_active_projector(service: ServiceProcess) -> bool:
    return await service.metric("squad_projector_active") == 1

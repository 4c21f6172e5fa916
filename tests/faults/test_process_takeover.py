"""One of two processes goes: asked to, killed, or standing still. The other one carries on."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.load import Load
from tests.support.log import LogWriter, joined, said
from tests.support.parts import connected
from tests.support.process import squad_up
from tests.support.signals import stopped
from tests.support.trial import Trial
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

TAKEN_OVER_WITHIN_SECONDS = 3.0
STOP_TIMEOUT_SECONDS = 5.0

PAST_A_STOPPED_ONE_WITHIN_SECONDS = 20.0
"""The database ends a transaction that nobody goes on with after 10 seconds; then others get the lock."""


async def test_the_tables_follow_the_log_again_when_the_active_projector_was_killed(database: str) -> None:
    async with squad_up(dsn=database) as first, connected(database) as elsewhere:
        await eventually(lambda: projects(first))
        async with squad_up(dsn=database) as second:
            assert not await projects(second)
            scribe = LogWriter(elsewhere)
            await scribe.catch_up()
            await first.kill()
            await scribe.append(joined("alice"), said("who is going to write this down?"))
            await eventually(lambda: projected_to_head(database), within_seconds=TAKEN_OVER_WITHIN_SECONDS)
            assert await projects(second)


async def test_a_process_asked_to_stop_under_load_ends_in_five_seconds_and_loses_nothing(
    database: str,
) -> None:
    async with squad_up(dsn=database) as leaving, squad_up(dsn=database) as staying:
        trial = Trial("SIGTERM to one of two services", TAKEN_OVER_WITHIN_SECONDS, Load([leaving, staying]))
        async with trial.running():
            asked = monotonic()
            with trial.cause():
                assert await leaving.stop(within_seconds=STOP_TIMEOUT_SECONDS) == 0
            assert monotonic() - asked < STOP_TIMEOUT_SECONDS
            await trial.well(staying)
        await trial.judge(database)


async def test_the_only_process_asked_to_stop_under_load_ends_in_five_seconds_and_loses_nothing(
    database: str,
) -> None:
    async with squad_up(dsn=database) as service:
        load = Load([service])
        async with load.running():
            await load.more()
            assert await service.stop(within_seconds=STOP_TIMEOUT_SECONDS) == 0
            await service.start()
            await load.more()
        await load.assert_kept(database)


async def test_a_process_that_stands_still_holds_up_the_other_one_only_for_seconds(database: str) -> None:
    async with squad_up(dsn=database) as still, squad_up(dsn=database) as awake:
        load, other = Load([still], "still"), Load([awake], "awake")
        trial = Trial("SIGSTOP of one of two services", PAST_A_STOPPED_ONE_WITHIN_SECONDS, load, other)
        async with trial.running():
            # In the middle of things: it may well hold the log's lock.
            with trial.cause(), stopped(psutil.Process(still.pid)):
                await other.more(within_seconds=PAST_A_STOPPED_ONE_WITHIN_SECONDS)
            await trial.well(still, awake)
        await trial.judge(database)


async def projects(service: ServiceProcess) -> bool:
    return await service.metric("squad_projector_active") == 1

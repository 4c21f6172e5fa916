"""Two services whose projectors both act as the active one collide without harm."""

from __future__ import annotations

import pytest

from tests.support.load import Load
from tests.support.process import ServiceProcess, squad_up
from tests.support.trial import Trial
from tests.support.unlocked_projector import PROGRAM
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

COLLISIONS = 3
RECOVERY_SECONDS = 10.0
"""A projector that was overtaken starts over within five seconds."""


async def test_two_active_projectors_collide_and_recover(database: str) -> None:
    async with (
        squad_up(dsn=database, program=PROGRAM) as one,
        squad_up(dsn=database, program=PROGRAM) as two,
    ):
        trial = Trial("two projectors with one name", RECOVERY_SECONDS, Load([one, two]))
        async with trial.running():
            with trial.fault_injection():
                await eventually(
                    lambda: collisions(one) + collisions(two) >= COLLISIONS,
                    within_seconds=60,
                    describe="they collide",
                )
            await trial.wait_until_recovered(one, two)
            # Both are active again.
            await eventually(lambda: is_active_projector(one), within_seconds=RECOVERY_SECONDS)
            await eventually(lambda: is_active_projector(two), within_seconds=RECOVERY_SECONDS)
        await trial.verify(database)


def collisions(service: ServiceProcess) -> int:
    return sum("the projector starts over" in line for line in service.log_lines())


async def is_active_projector(service: ServiceProcess) -> bool:
    return await service.metric("squad_projector_active") == 1

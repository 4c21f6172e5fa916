"""Two services whose projectors both believe themselves the only one: they collide, and do no harm."""

from __future__ import annotations

import pytest

from tests.support.load import Load
from tests.support.process import ServiceProcess, squad_up
from tests.support.trial import Trial
from tests.support.unlocked_projector import PROGRAM
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

COLLISIONS = 3
AFTER_A_COLLISION_SECONDS = 10.0
"""Whoever was overtaken begins anew, after five seconds at most."""


async def test_two_projectors_with_one_name(database: str) -> None:
    async with (
        squad_up(dsn=database, program=PROGRAM) as one,
        squad_up(dsn=database, program=PROGRAM) as two,
    ):
        trial = Trial("two projectors with one name", AFTER_A_COLLISION_SECONDS, Load([one, two]))
        async with trial.running():
            with trial.cause():
                await eventually(
                    lambda: collisions(one) + collisions(two) >= COLLISIONS,
                    within_seconds=60,
                    describe="they collide",
                )
            await trial.well(one, two)
            # Neither has given up.
            await eventually(lambda: projects(one), within_seconds=AFTER_A_COLLISION_SECONDS)
            await eventually(lambda: projects(two), within_seconds=AFTER_A_COLLISION_SECONDS)
        await trial.judge(database)


def collisions(service: ServiceProcess) -> int:
    return sum("the projector starts over" in line for line in service.log_lines())


async def projects(service: ServiceProcess) -> bool:
    return await service.metric("squad_projector_active") == 1

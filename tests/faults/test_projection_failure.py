"""An event that one projection cannot take: it alone stops there, and goes on when it can."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import aiohttp
import pytest

from projections.projector import RETRY_FAILED_SECONDS
from tests.support.load import Load
from tests.support.parts import connected
from tests.support.process import squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

AFTER_IT_WAS_MENDED_SECONDS = RETRY_FAILED_SECONDS + 5.0
"""It tries again so often."""


async def test_a_table_that_does_not_take_a_row(database: str) -> None:
    async with squad_up(dsn=database) as service, connected(database) as elsewhere:
        await eventually(service.is_ready)
        trial = Trial(
            "an event that a projection cannot take", AFTER_IT_WAS_MENDED_SECONDS, Load([service])
        )
        async with trial.running(clients=4):
            with trial.cause():
                await elsewhere.execute(
                    "ALTER TABLE squad_messages ADD CONSTRAINT taste CHECK (message <> 'poison')"
                )
                body = {"from_agent": "alice", "message": "poison"}
                async with aiohttp.request("POST", f"{service.url}/api/v1/messages", json=body) as response:
                    assert response.status == 201
                await eventually(lambda: has_stopped(service))
                # All else goes on.
                await trial.loads[0].more(50)
                await elsewhere.execute("ALTER TABLE squad_messages DROP CONSTRAINT taste")
            await trial.well(service)
        await trial.judge(database)


async def has_stopped(service: ServiceProcess) -> bool:
    """Whether it says that it is not ready, and which projection has stopped, and only that one."""
    async with aiohttp.request("GET", f"{service.url}/readyz") as response:
        shown = json.loads(await response.read())["checks"]["projections"]["by_name"]
        stopped = [name for name, check in shown.items() if check.get("failed_position")]
        return response.status == 503 and stopped == ["messages"]

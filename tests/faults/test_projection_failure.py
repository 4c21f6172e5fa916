"""A projection that cannot handle an event stops there, and continues once it can."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import aiohttp
import pytest

from projections.projector import RETRY_FAILED_SECONDS
from tests.support.components import connected
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

RECOVERY_SECONDS = RETRY_FAILED_SECONDS + 5.0
"""The interval between retries, and some time to catch up."""


async def test_projection_that_fails_on_an_event_stops_alone_and_recovers(database: str) -> None:
    async with squad_up(dsn=database) as service, connected(database) as connection:
        await eventually(service.is_ready)
        trial = Trial("an event that a projection cannot take", RECOVERY_SECONDS, Load([service]))
        async with trial.running(clients=4):
            with trial.fault_injection():
                await connection.execute(
                    "ALTER TABLE squad_messages ADD CONSTRAINT taste CHECK (message <> 'poison')"
                )
                body = {"from_agent": "alice", "message": "poison"}
                async with aiohttp.request("POST", f"{service.url}/api/v1/messages", json=body) as response:
                    assert response.status == 201
                await eventually(lambda: only_messages_stopped(service))
                # Everything else continues.
                await trial.loads[0].wait_for_answers(50)
                await connection.execute("ALTER TABLE squad_messages DROP CONSTRAINT taste")
            await trial.wait_until_recovered(service)
        await trial.verify(database)


async def only_messages_stopped(service: ServiceProcess) -> bool:
    """Whether the service is not ready because the projection `messages` has stopped, and only that one."""
    async with aiohttp.request("GET", f"{service.url}/readyz") as response:
        by_name = json.loads(await response.read())["checks"]["projections"]["by_name"]
        stopped = [name for name, check in by_name.items() if check.get("failed_position")]
        return response.status == 503 and stopped == ["messages"]

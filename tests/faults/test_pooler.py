"""A pooler between the service and its database: what works, and what is reported where it does not.

The pooler is Debian's pgbouncer with its default settings.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.components import connected
from tests.support.load import Load
from tests.support.pooler import pooler
from tests.support.process import failed_start_output, squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

RECOVERY_SECONDS = 5.0
"""The first retries succeed."""

NOTICED_WITHIN_SECONDS = 10.0
"""The interval and the timeout of heartbeats."""

KILLS = 3


async def apply_suggested_role_settings(dsn: str, output: str) -> None:
    """Execute the statements that a failed start suggests."""
    statements = set(re.findall(r"""ALTER ROLE "\w+" IN DATABASE "\w+" SET "\w+" = '\w+'""", output))
    assert len(statements) >= 4, output
    async with connected(dsn) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def test_service_with_a_direct_listen_dsn_recovers_when_the_pooler_is_killed(database: str) -> None:
    async with pooler(database) as pgbouncer:
        output = await failed_start_output(dsn=pgbouncer.dsn, SQUAD_LISTEN_DSN=database)
        assert "the connection goes through a pooler" in output
        await apply_suggested_role_settings(database, output)
        # The pooler still has server connections without these settings.
        pgbouncer.kill()
        await pgbouncer.start()
        async with squad_up(dsn=pgbouncer.dsn, SQUAD_LISTEN_DSN=database) as service:
            trial = Trial(
                f"pgbouncer in transaction mode, kill -9 of it {KILLS} times",
                RECOVERY_SECONDS,
                Load([service]),
            )
            async with trial.running():
                for _ in range(KILLS):
                    with trial.fault_injection():
                        pgbouncer.kill()
                        await pgbouncer.start()
                    await trial.wait_until_recovered(service)
            await trial.verify(database)
    async with connected(database) as connection:
        cursor = await connection.execute("SELECT to_regclass('public.events')")
        assert await cursor.fetchone() == (None,)


async def test_start_through_a_pooler_fails_with_instructions_when_there_is_no_listen_dsn(
    database: str,
) -> None:
    async with pooler(database) as pgbouncer:
        output = await failed_start_output(dsn=pgbouncer.dsn)
    assert "SQUAD_DSN leads through a pooler" in output
    assert "SQUAD_LISTEN_DSN" in output
    assert "ALTER ROLE" in output


async def test_listen_dsn_that_leads_through_the_pooler_is_detected(database: str) -> None:
    """Commands are carried out nevertheless, but the service reports that it is not ready."""
    async with pooler(database) as pgbouncer:
        output = await failed_start_output(dsn=pgbouncer.dsn, SQUAD_LISTEN_DSN=pgbouncer.dsn)
        await apply_suggested_role_settings(database, output)
        pgbouncer.kill()
        await pgbouncer.start()
        async with squad_up(dsn=pgbouncer.dsn, SQUAD_LISTEN_DSN=pgbouncer.dsn) as service:
            load = Load([service])
            async with load.running(clients=4):
                await load.wait_for_answers(50)
                await eventually(
                    lambda: listener_reports_the_pooler(service), within_seconds=NOTICED_WITHIN_SECONDS
                )
                await load.wait_for_answers(50)
            await load.assert_log_matches_answers(database)


async def test_listen_dsn_may_lead_through_a_pooler_in_session_mode(database: str) -> None:
    async with pooler(database, mode="session") as pgbouncer:
        output = await failed_start_output(dsn=pgbouncer.dsn)
        assert "one through a pooler that keeps sessions" in output
        await apply_suggested_role_settings(database, output)
        pgbouncer.kill()
        await pgbouncer.start()
        async with squad_up(dsn=pgbouncer.dsn, SQUAD_LISTEN_DSN=pgbouncer.dsn) as service:
            await eventually(service.is_ready, within_seconds=NOTICED_WITHIN_SECONDS)


async def listener_reports_the_pooler(service: ServiceProcess) -> bool:
    async with aiohttp.request("GET", f"{service.url}/readyz") as response:
        listener: dict[str, Any] = json.loads(await response.read())["checks"]["listener"]
    return not listener["ok"] and "goes through a pooler" in (listener["problem"] or "")

"""A pooler in transaction mode stands between: what works, and what is said where it cannot.

Debian's pgbouncer as it is installed, with no setting made for our sake.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.load import Load
from tests.support.parts import connected
from tests.support.pooler import pooler
from tests.support.process import refused_start, squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

AFTER_A_KILL_SECONDS = 5.0
"""The first attempts succeed."""

NOTICED_WITHIN_SECONDS = 10.0
"""A heartbeat, and the wait for it."""

KILLS = 3


async def make_settings_the_roles_own(dsn: str, refusal: str) -> None:
    """Does what a refused start says is to be done."""
    statements = set(re.findall(r"""ALTER ROLE "\w+" IN DATABASE "\w+" SET "\w+" = '\w+'""", refusal))
    assert len(statements) >= 4, refusal
    async with connected(dsn) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def test_with_a_listener_dsn_all_works_and_goes_on_after_the_pooler_was_killed(database: str) -> None:
    async with pooler(database) as between:
        refusal = await refused_start(dsn=between.dsn, SQUAD_LISTEN_DSN=database)
        assert "the connection goes through a pooler" in refusal
        await make_settings_the_roles_own(database, refusal)
        # It hands out server connections that know nothing of it yet.
        between.kill()
        await between.start()
        async with squad_up(dsn=between.dsn, SQUAD_LISTEN_DSN=database) as service:
            trial = Trial(
                f"pgbouncer in transaction mode, kill -9 of it {KILLS} times",
                AFTER_A_KILL_SECONDS,
                Load([service]),
            )
            async with trial.running():
                for _ in range(KILLS):
                    with trial.cause():
                        between.kill()
                        await between.start()
                    await trial.well(service)
            await trial.judge(database)
    async with connected(database) as connection:
        cursor = await connection.execute("SELECT to_regclass('public.events')")
        assert await cursor.fetchone() == (None,)


async def test_without_a_listener_dsn_it_says_what_is_missing_and_does_not_start(database: str) -> None:
    async with pooler(database) as between:
        refusal = await refused_start(dsn=between.dsn)
    assert "SQUAD_DSN leads through a pooler" in refusal
    assert "SQUAD_LISTEN_DSN" in refusal
    assert "ALTER ROLE" in refusal


async def test_a_listener_dsn_that_leads_through_the_pooler_too_is_found_out(database: str) -> None:
    """Commands are carried out all the same, and nobody is told that all is well."""
    async with pooler(database) as between:
        refusal = await refused_start(dsn=between.dsn, SQUAD_LISTEN_DSN=between.dsn)
        await make_settings_the_roles_own(database, refusal)
        between.kill()
        await between.start()
        async with squad_up(dsn=between.dsn, SQUAD_LISTEN_DSN=between.dsn) as service:
            load = Load([service])
            async with load.running(clients=4):
                await load.more(50)
                await eventually(lambda: is_told_why(service), within_seconds=NOTICED_WITHIN_SECONDS)
                await load.more(50)
            await load.assert_kept(database)


async def test_a_pooler_that_keeps_sessions_may_be_named_as_the_listener_dsn(database: str) -> None:
    async with pooler(database, mode="session") as between:
        refusal = await refused_start(dsn=between.dsn)
        assert "one through a pooler that keeps sessions" in refusal
        await make_settings_the_roles_own(database, refusal)
        between.kill()
        await between.start()
        async with squad_up(dsn=between.dsn, SQUAD_LISTEN_DSN=between.dsn) as service:
            await eventually(service.is_ready, within_seconds=NOTICED_WITHIN_SECONDS)


async def is_told_why(service: ServiceProcess) -> bool:
    async with aiohttp.request("GET", f"{service.url}/readyz") as response:
        listener: dict[str, Any] = json.loads(await response.read())["checks"]["listener"]
    return not listener["ok"] and "goes through a pooler" in (listener["problem"] or "")

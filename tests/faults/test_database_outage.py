"""The database is away, or the way to it: what was acknowledged is there, and all goes on by itself."""

from __future__ import annotations

import asyncio
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING

import pytest

from service.embedded.cluster import Cluster
from service.writing.writer import SUBMIT_TIMEOUT_SECONDS
from tests.support.embedded import server_in
from tests.support.load import Load
from tests.support.parts import connected, lock_is_free, terminate
from tests.support.process import squad_up
from tests.support.proxy import Proxy
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults

OUTAGE_SECONDS = 30.0
"""Longer than anybody waits: callers are sent away after 20 seconds, round trips are cut after 10."""
assert OUTAGE_SECONDS > SUBMIT_TIMEOUT_SECONDS

SWALLOWED_SECONDS = 12.0
"""Longer than a round trip may take, so that every one is given up while it is on its way."""

AFTER_AN_OUTAGE_SECONDS = 10.0
"""The longest wait between two attempts, five seconds, and a heartbeat."""

AFTER_A_CUT_SECONDS = 5.0
"""The first attempts succeed."""

TERMINATIONS = 10
EVICTION_STEPS = 9


async def test_postgres_gone_for_longer_than_callers_wait(data_folder: Path) -> None:
    async with server_in(data_folder) as dsn, squad_up(dsn=dsn) as service:
        trial = Trial(
            f"Postgres stopped for {OUTAGE_SECONDS:g} s", AFTER_AN_OUTAGE_SECONDS, Load([service])
        )
        server = Cluster(data_folder / "postgres")
        async with trial.running():
            with trial.cause():
                await asyncio.to_thread(server.stop)
                await eventually(service.is_not_ready)
                await waited(OUTAGE_SECONDS)
                await asyncio.to_thread(server.ensure_running)
            await trial.well(service)
        await trial.judge(dsn)


async def test_every_backend_ended_at_random_moments(database: str) -> None:
    random = Random(11)
    async with squad_up(dsn=database) as service, connected(database) as elsewhere:
        trial = Trial(f"every connection ended, {TERMINATIONS} times", AFTER_A_CUT_SECONDS, Load([service]))
        async with trial.running():
            for _ in range(TERMINATIONS):
                await waited(random.uniform(0.0, 0.5))
                with trial.cause():
                    assert await terminate(elsewhere, "squad %") > 0
            await trial.well(service)
        await eventually(lambda: lock_is_free(elsewhere))
        await trial.judge(database)


async def test_commits_whose_answer_never_comes(database: str) -> None:
    """Before the request, behind it, and on its way to arrive later, in turn."""
    async with Proxy(database).running() as proxy, squad_up(dsn=proxy.dsn) as service:
        trial = Trial(
            f"connection cut around a COMMIT, {EVICTION_STEPS} times", AFTER_A_CUT_SECONDS, Load([service])
        )
        ways = cycle((proxy.cut_after_answer, proxy.cut_before, proxy.hold))
        async with trial.running():
            for way, _ in zip(ways, range(EVICTION_STEPS), strict=False):
                with trial.cause():
                    cut = way(b"message_sent")
                    await eventually(cut.happened.is_set)
                await trial.well(service)
                if way == proxy.hold:
                    await cut.release()
        await trial.judge(database)


async def test_a_network_that_swallows_everything(database: str) -> None:
    async with Proxy(database).running() as proxy, squad_up(dsn=proxy.dsn) as service:
        trial = Trial(
            f"network swallows everything for {SWALLOWED_SECONDS:g} s",
            AFTER_AN_OUTAGE_SECONDS,
            Load([service]),
        )
        async with trial.running():
            with trial.cause(), proxy.swallowing():
                await eventually(service.is_not_ready)
                await waited(SWALLOWED_SECONDS)
            await trial.well(service)
        await trial.judge(database)


async def waited(seconds: float) -> None:
    """Lets the fault last, which is what is tested."""
    await asyncio.sleep(seconds)

"""The service recovers from outages of the database and its network, and loses no acknowledged write."""

from __future__ import annotations

import asyncio
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING

import pytest

from service.embedded.cluster import Cluster
from service.writing.writer import SUBMIT_TIMEOUT_SECONDS
from tests.support.components import connected, lock_is_free, terminate_backends
from tests.support.embedded import server_in
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.proxy import Proxy
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults

OUTAGE_SECONDS = 30.0
"""Longer than all timeouts: 20 seconds for callers, 10 for round trips."""
assert OUTAGE_SECONDS > SUBMIT_TIMEOUT_SECONDS

PARTITION_SECONDS = 12.0
"""Longer than the timeout of a round trip, so that all those in flight are given up."""

OUTAGE_RECOVERY_SECONDS = 10.0
"""The longest backoff, five seconds, plus a heartbeat."""

CUT_RECOVERY_SECONDS = 5.0
"""The first retries succeed."""

TERMINATIONS = 10
CUTS = 9


async def test_service_recovers_from_an_outage_longer_than_callers_wait(data_folder: Path) -> None:
    async with server_in(data_folder) as dsn, squad_up(dsn=dsn) as service:
        trial = Trial(
            f"Postgres stopped for {OUTAGE_SECONDS:g} s", OUTAGE_RECOVERY_SECONDS, Load([service])
        )
        server = Cluster(data_folder / "postgres")
        async with trial.running():
            with trial.fault_injection():
                await asyncio.to_thread(server.stop)
                await eventually(service.is_not_ready)
                await fault_lasts(OUTAGE_SECONDS)
                await asyncio.to_thread(server.ensure_running)
            await trial.wait_until_recovered(service)
        await trial.verify(dsn)


async def test_service_recovers_when_all_backends_are_terminated_at_random(database: str) -> None:
    random = Random(11)
    async with squad_up(dsn=database) as service, connected(database) as connection:
        trial = Trial(
            f"every connection ended, {TERMINATIONS} times", CUT_RECOVERY_SECONDS, Load([service])
        )
        async with trial.running():
            for _ in range(TERMINATIONS):
                await fault_lasts(random.uniform(0.0, 0.5))
                with trial.fault_injection():
                    assert await terminate_backends(connection, "squad %") > 0
            await trial.wait_until_recovered(service)
        await eventually(lambda: lock_is_free(connection))
        await trial.verify(database)


async def test_service_recovers_when_connections_break_around_commits(database: str) -> None:
    """In turn: after the commit, before the request arrives, and with the request arriving late."""
    async with Proxy(database).running() as proxy, squad_up(dsn=proxy.dsn) as service:
        trial = Trial(
            f"connection cut around a COMMIT, {CUTS} times", CUT_RECOVERY_SECONDS, Load([service])
        )
        rules = cycle((proxy.cut_after_answer, proxy.cut_before, proxy.hold))
        async with trial.running():
            for rule, _ in zip(rules, range(CUTS), strict=False):
                with trial.fault_injection():
                    cut = rule(b"message_sent")
                    await eventually(cut.happened.is_set)
                await trial.wait_until_recovered(service)
                if rule == proxy.hold:
                    await cut.release()
        await trial.verify(database)


async def test_service_recovers_from_a_network_partition(database: str) -> None:
    async with Proxy(database).running() as proxy, squad_up(dsn=proxy.dsn) as service:
        trial = Trial(
            f"network swallows everything for {PARTITION_SECONDS:g} s",
            OUTAGE_RECOVERY_SECONDS,
            Load([service]),
        )
        async with trial.running():
            with trial.fault_injection(), proxy.partitioned():
                await eventually(service.is_not_ready)
                await fault_lasts(PARTITION_SECONDS)
            await trial.wait_until_recovered(service)
        await trial.verify(database)


async def fault_lasts(seconds: float) -> None:
    """Let the fault last for a time; its duration is what is tested."""
    await asyncio.sleep(seconds)

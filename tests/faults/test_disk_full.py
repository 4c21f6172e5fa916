"""The service recovers when a full disk has space again, and loses no acknowledged write."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg
import pytest

from eventstore.errors import StoreUnavailable
from tests.support.components import connected
from tests.support.embedded import postmaster_pid, server_in
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.small_disk import filled, small_disk
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults

MEBIBYTES = 160
"""A new cluster takes about sixty."""

RECOVERY_SECONDS = 5.0
"""The writer retries every two seconds."""

PANIC_RECOVERY_SECONDS = 25.0
"""A server that has exited is restarted within fifteen seconds, and then recovers."""


async def test_service_recovers_when_tables_run_out_of_space(data_folder: Path) -> None:
    with small_disk(data_folder, MEBIBYTES):
        async with squad_up(data=data_folder) as service:
            trial = Trial("no space left for tables", RECOVERY_SECONDS, Load([service]))
            async with trial.running():
                with trial.fault_injection(), filled(data_folder):
                    await eventually(service.is_not_ready)
                await trial.wait_until_recovered(service)
            async with server_in(data_folder) as dsn:
                await trial.verify(dsn)


async def test_service_recovers_when_the_write_ahead_log_runs_out_of_space(data_folder: Path) -> None:
    """Postgres then panics, and cannot restart before there is space."""
    with small_disk(data_folder, MEBIBYTES):
        async with squad_up(data=data_folder) as service, server_in(data_folder) as dsn:
            trial = Trial("no space left for the write-ahead log", PANIC_RECOVERY_SECONDS, Load([service]))
            pid = postmaster_pid(data_folder)
            async with trial.running():
                with trial.fault_injection(), filled(data_folder):
                    with contextlib.suppress(psycopg.Error, StoreUnavailable):
                        async with connected(dsn) as connection:
                            while True:
                                await connection.execute("SELECT pg_switch_wal()")
                    await eventually(lambda: postmaster_pid(data_folder) != pid)
                    await eventually(service.is_not_ready)
                await trial.wait_until_recovered(service)
            await trial.verify(dsn)

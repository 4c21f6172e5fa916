"""Postgres has no space left: nothing acknowledged is lost, and with space all goes on by itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg
import pytest

from eventstore.errors import StoreUnavailable
from tests.support.embedded import postmaster_pid, server_in
from tests.support.load import Load
from tests.support.parts import connected
from tests.support.process import squad_up
from tests.support.small_disk import filled, small_disk
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults

MEBIBYTES = 160
"""A new cluster takes about sixty."""

AFTER_SPACE_SECONDS = 5.0
"""The writer tries again every two seconds."""

AFTER_A_PANIC_SECONDS = 25.0
"""A server that gave up is started again at least every fifteen seconds, and recovers."""


async def test_no_space_for_the_log(data_folder: Path) -> None:
    with small_disk(data_folder, MEBIBYTES):
        async with squad_up(data=data_folder) as service:
            trial = Trial("no space left for tables", AFTER_SPACE_SECONDS, Load([service]))
            async with trial.running():
                with trial.cause(), filled(data_folder):
                    await eventually(service.is_not_ready)
                await trial.well(service)
            async with server_in(data_folder) as dsn:
                await trial.judge(dsn)


async def test_no_space_for_what_makes_it_durable(data_folder: Path) -> None:
    """Postgres then gives up altogether, and cannot start again before there is space."""
    with small_disk(data_folder, MEBIBYTES):
        async with squad_up(data=data_folder) as service, server_in(data_folder) as dsn:
            trial = Trial("no space left for the write-ahead log", AFTER_A_PANIC_SECONDS, Load([service]))
            pid = postmaster_pid(data_folder)
            async with trial.running():
                with trial.cause(), filled(data_folder):
                    with contextlib.suppress(psycopg.Error, StoreUnavailable):
                        async with connected(dsn) as connection:
                            while True:
                                await connection.execute("SELECT pg_switch_wal()")
                    await eventually(lambda: postmaster_pid(data_folder) != pid)
                    await eventually(service.is_not_ready)
                await trial.well(service)
            await trial.judge(dsn)

"""Commands that a signal ends early: they remove what they created for themselves.

All tests run the installed command.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import termios
from array import array
from functools import partial
from select import PIPE_BUF
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from service.selftest.temporary_schema import PREFIX
from tests.support.command import SQUAD, end, squad_command
from tests.support.components import connected, running_writer
from tests.support.embedded import new_data_folder, postmaster_pid
from tests.support.random_history import RandomHistory
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from eventstore.connection import Connection

_PIPE_BYTES = 64 * 1024
LONG_COMMAND = ("bench", "--seconds", "60")


@pytest.fixture
def folder() -> Iterator[Path]:
    with new_data_folder() as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_embedded_postgres_is_stopped_on_signal(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    async with squad_command(*LONG_COMMAND, "--data", str(folder), cwd=tmp_path, command=SQUAD) as process:
        await eventually(lambda: postmaster_pid(folder), within_seconds=60)
        process.send_signal(number)
        assert (await end(process)).code == 128 + number
    assert postmaster_pid(folder) is None


async def test_temporary_schema_is_removed_even_after_a_second_signal(
    database: str, tmp_path: Path
) -> None:
    async with connected(database) as connection:
        async with squad_command(*LONG_COMMAND, "--dsn", database, cwd=tmp_path, command=SQUAD) as process:
            await eventually(partial(_schema_exists, connection), within_seconds=60)
            for _ in range(2):
                process.send_signal(signal.SIGTERM)
            assert (await end(process)).code == 128 + signal.SIGTERM
        assert not await _schema_exists(connection)


async def test_command_under_nohup_survives_sighup_and_ends_on_sigterm(
    database: str, tmp_path: Path
) -> None:
    arguments = (str(SQUAD), *LONG_COMMAND, "--dsn", database)
    async with (
        connected(database) as connection,
        squad_command(*arguments, command="nohup", cwd=tmp_path) as process,
    ):
        await eventually(partial(_schema_exists, connection), within_seconds=60)
        for number in (signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
        assert (await end(process)).code == 128 + signal.SIGTERM


async def test_command_whose_output_is_not_read_ends_on_sigterm(database: str, tmp_path: Path) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=1).submit_commands(writer, 300, at_once=20)
    with _started_with_unread_output("events", "--json", "--dsn", database, cwd=tmp_path) as process:
        assert process.stdout
        await eventually(partial(_is_full, process.stdout.fileno()), within_seconds=60)
        process.terminate()
        await eventually(lambda: process.poll() is not None, within_seconds=20)
        assert process.returncode == 128 + signal.SIGTERM


def _started_with_unread_output(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    # Without a buffer, Python gives up a write that a signal interrupts.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen([SQUAD, *arguments], cwd=cwd, env=buffered, stdout=PIPE)


def _is_full(pipe: int) -> bool:
    waiting = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0] > _PIPE_BYTES - PIPE_BUF


async def _schema_exists(connection: Connection) -> bool:
    found = await connection.execute("SELECT FROM pg_namespace WHERE starts_with(nspname, %s)", (PREFIX,))
    return await found.fetchone() is not None

"""`squad export` and `squad import` are all or nothing when they are interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from eventstore import log
from tests.support.command import SQUAD, squad, squad_output, start
from tests.support.components import connected, lock_is_free, lock_is_held, terminate_backends
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.faults

EVENTS = 6_000
FIRST_LINES = 4_500
"""More than the import reads at once, so that it has started; the rest follows later."""


@pytest.fixture
async def exported(database: str, tmp_path: Path) -> list[bytes]:
    """The lines of an export, which is also in the file `log`."""
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await log_writer.append(agent_registered("alice"))
        for _ in range(6):
            await log_writer.append(*(message_sent("hello") for _ in range(EVENTS // 6)))
    await squad_output("export", "log", "--dsn", database, cwd=tmp_path)
    return (tmp_path / "log").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_interrupted_import_leaves_nothing_and_can_be_repeated(
    exported: list[bytes], second_database: str, tmp_path: Path, number: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = await start(tmp_path, "import", "pipe", "--dsn", second_database)
    pipe = await asyncio.to_thread((tmp_path / "pipe").open, "wb", buffering=0)
    with pipe:
        await asyncio.to_thread(pipe.write, b"".join(exported[:FIRST_LINES]))
        async with connected(second_database) as connection:
            await eventually(partial(lock_is_held, connection))
            process.send_signal(number)
            await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode not in (0, None)
            await eventually(partial(lock_is_free, connection))
            assert await log.head_position(connection) == 0
    await squad_output("import", "log", "--dsn", second_database, cwd=tmp_path)
    assert len(await assert_log_is_sound(second_database)) == len(exported) - 2
    await assert_tables_equal_fold(second_database)


async def test_import_of_a_truncated_file_leaves_nothing(
    exported: list[bytes], second_database: str, tmp_path: Path
) -> None:
    (tmp_path / "cut").write_bytes(b"".join(exported[:-1]))
    ended = await squad(tmp_path, "import", "cut", "--dsn", second_database)
    # Progress may have been printed before, if the import took long.
    assert ended.errors.splitlines()[-1].startswith(
        "squad: nothing was imported: the file is truncated: it has no end line after line"
    )
    assert (ended.code, ended.output) == (1, "")
    async with connected(second_database) as connection:
        assert await log.head_position(connection) == 0


async def test_import_that_loses_its_connection_leaves_nothing(
    exported: list[bytes], second_database: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = await start(tmp_path, "import", "pipe", "--dsn", second_database)
    pipe = await asyncio.to_thread((tmp_path / "pipe").open, "wb", buffering=0)
    with pipe:
        await asyncio.to_thread(pipe.write, b"".join(exported[:FIRST_LINES]))
        async with connected(second_database) as connection:
            await eventually(partial(lock_is_held, connection))
            assert await terminate_backends(connection, "squad import") == 1
            writing = asyncio.to_thread(pipe.write, b"".join(exported[FIRST_LINES:]))
            await asyncio.gather(writing, return_exceptions=True)
            pipe.close()
            output, errors = await asyncio.wait_for(process.communicate(), 20)
            assert (process.returncode, output) == (1, b"")
            # Progress may have been printed before, if the import took long.
            *_, complaint = errors.splitlines()
            assert complaint.startswith(b"squad: the database cannot be reached")
            assert await log.head_position(connection) == 0


async def test_killed_export_leaves_no_partial_file_under_its_name(
    exported: list[bytes], database: str, tmp_path: Path
) -> None:
    process = await start(tmp_path, "export", "copy", "--dsn", database)
    await eventually(lambda: any(tmp_path.glob(".copy.*.part")) or (tmp_path / "copy").exists())
    process.kill()
    await process.communicate()
    copy = tmp_path / "copy"
    assert not copy.exists() or copy.read_bytes() == b"".join(exported)


async def test_export_to_a_closed_pipe_ends_quietly(
    exported: list[bytes], database: str, tmp_path: Path
) -> None:
    pipe = f'"{SQUAD}" export - --dsn "$0" | head -n 1'
    process = await start(tmp_path, "-c", pipe, database, command="/bin/sh")
    output, errors = await process.communicate()
    assert (process.returncode, output, errors) == (0, exported[0], b"")

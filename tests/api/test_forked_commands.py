"""The forks that most tests run in place of the installed command behave exactly like it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.command import ENDS_WITHIN_SECONDS, SQUAD, Process, end, squad, start
from tests.support.components import connected
from tests.support.forked_command import AsyncForkedProcess
from tests.support.log import LogWriter, agent_registered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux only")

STATUS_FIELDS = ("Umask", "SigBlk", "SigIgn", "SigCgt", "NSpgid", "NSsid", "Threads", "NoNewPrivs")


@pytest.fixture
async def fork_and_installed(database: str, tmp_path: Path) -> AsyncIterator[list[Process]]:
    """A fork and an installed command, both running with the same arguments."""
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await log_writer.append(agent_registered("ada"))
    arguments = ("events", "--follow", "--json", "--dsn", database)
    settings = {"SQUAD_SCHEMA": "squad"}
    fork_and_installed: list[Process] = [
        await start(tmp_path, *arguments, **settings),
        await start(tmp_path, *arguments, command=SQUAD, **settings),
    ]
    for process in fork_and_installed:
        assert process.stdout
        assert await asyncio.wait_for(process.stdout.readline(), ENDS_WITHIN_SECONDS)
    yield fork_and_installed
    for process in fork_and_installed:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def _process_state(pid: int) -> dict[str, Any]:
    """What the kernel reports about a process."""
    place = Path("/proc", str(pid))
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    opened = {int(entry.name): str(entry.readlink()) for entry in (place / "fd").iterdir()}
    kinds = {number: re.sub(r"\d+", "", what) for number, what in opened.items()}
    return {
        **{name: status[name] for name in STATUS_FIELDS},
        "folder": (place / "cwd").readlink(),
        "limits": (place / "limits").read_text(),
        "streams": [kinds.pop(number) for number in range(3)],
        "others": Counter(kinds.values()),
    }


async def test_fork_has_the_same_process_state_as_installed_command(
    fork_and_installed: list[Process],
) -> None:
    fork, installed = fork_and_installed
    assert isinstance(fork, AsyncForkedProcess)
    assert not isinstance(installed, AsyncForkedProcess)
    assert _process_state(fork.pid) == _process_state(installed.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_fork_ends_like_installed_command_on_signal(
    fork_and_installed: list[Process], number: signal.Signals
) -> None:
    for process in fork_and_installed:
        process.send_signal(number)
    fork, installed = [await end(process) for process in fork_and_installed]
    assert fork == installed


async def test_each_fork_is_its_own_process_and_is_reaped(tmp_path: Path) -> None:
    forks = [await start(tmp_path, "--version") for _ in range(2)]
    for fork in forks:
        assert (await end(fork)).output.startswith("squad, version ")
    assert len({fork.pid for fork in forks}) == 2
    assert not any(psutil.pid_exists(fork.pid) for fork in forks)


async def test_installed_command_is_run_for_variable_that_python_reads(tmp_path: Path) -> None:
    process = await start(tmp_path, "--version", PYTHONVERBOSE="1")
    assert "import 'encodings'" in (await end(process)).errors
    assert (await squad(tmp_path, "--version")).errors == ""

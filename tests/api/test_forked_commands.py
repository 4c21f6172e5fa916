"""Forks, which most tests have for the command, are what the installed command is when it runs."""

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
from tests.support.forked import ForkedWithPipes
from tests.support.log import LogWriter, joined
from tests.support.parts import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux only")

SEEN = ("Umask", "SigBlk", "SigIgn", "SigCgt", "NSpgid", "NSsid", "Threads", "NoNewPrivs")


@pytest.fixture
async def both(database: str, tmp_path: Path) -> AsyncIterator[list[Process]]:
    """A fork and an installed command that do the same, both in the middle of it."""
    async with connected(database) as connection:
        scribe = LogWriter(connection)
        await scribe.catch_up()
        await scribe.append(joined("ada"))
    arguments = ("events", "--follow", "--json", "--dsn", database)
    settings = {"SQUAD_SCHEMA": "squad"}
    both: list[Process] = [
        await start(tmp_path, *arguments, **settings),
        await start(tmp_path, *arguments, command=SQUAD, **settings),
    ]
    for process in both:
        assert process.stdout
        assert await asyncio.wait_for(process.stdout.readline(), ENDS_WITHIN_SECONDS)
    yield both
    for process in both:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def _seen(pid: int) -> dict[str, Any]:
    """What the system says about a process."""
    place = Path("/proc", str(pid))
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    opened = {int(entry.name): str(entry.readlink()) for entry in (place / "fd").iterdir()}
    kinds = {number: re.sub(r"\d+", "", what) for number, what in opened.items()}
    return {
        **{name: status[name] for name in SEEN},
        "folder": (place / "cwd").readlink(),
        "limits": (place / "limits").read_text(),
        "streams": [kinds.pop(number) for number in range(3)],
        "others": Counter(kinds.values()),
    }


async def test_they_are_alike(both: list[Process]) -> None:
    fork, installed = both
    assert isinstance(fork, ForkedWithPipes)
    assert not isinstance(installed, ForkedWithPipes)
    assert _seen(fork.pid) == _seen(installed.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_they_end_alike(both: list[Process], number: signal.Signals) -> None:
    for process in both:
        process.send_signal(number)
    fork, installed = [await end(process) for process in both]
    assert fork == installed


async def test_each_is_another_process_that_leaves_nothing(tmp_path: Path) -> None:
    forks = [await start(tmp_path, "--version") for _ in range(2)]
    for fork in forks:
        assert (await end(fork)).output.startswith("squad, version ")
    assert len({fork.pid for fork in forks}) == 2
    assert not any(psutil.pid_exists(fork.pid) for fork in forks)


async def test_a_variable_that_python_reads_itself_is_for_the_installed_command(tmp_path: Path) -> None:
    process = await start(tmp_path, "--version", PYTHONVERBOSE="1")
    assert "import 'encodings'" in (await end(process)).errors
    assert (await squad(tmp_path, "--version")).errors == ""

"""The `squad` command as people type it, in a process of its own.

As a rule that is a fork of one that has loaded the command (tests/support/forked.py). With `command=SQUAD`
it is the installed command, found, started and loaded as people have it; so it is where a variable is
given that Python reads before the command can.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from tests.support.forked import SQUAD, ForkedWithPipes, can_be_forked, fork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["ENDS_WITHIN_SECONDS", "SQUAD", "Ended", "end", "finished", "squad", "squad_command", "start"]

Process = asyncio.subprocess.Process | ForkedWithPipes

ENDS_WITHIN_SECONDS = 60


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    output: str
    errors: str

    def lines(self) -> list[str]:
        """What it printed, where it went well."""
        assert (self.code, self.errors) == (0, ""), self
        return self.output.removesuffix("\n").split("\n") if self.output else []

    def complaint(self) -> str:
        """The one line of one that failed."""
        assert self.code not in (0, None)
        assert self.output == ""
        [line] = self.errors.splitlines()
        return line.removeprefix("squad: ")


async def start(
    folder: Path, *arguments: str, command: Path | str | None = None, **settings: str
) -> Process:
    """Starts it in a folder, with no settings but these, and with pipes for its output."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SQUAD_")}
    environment = {**ours, "COLUMNS": "160", **settings}
    if command is None and can_be_forked(settings):
        return await fork(*arguments, cwd=folder, env=environment)
    return await asyncio.create_subprocess_exec(
        command or SQUAD,
        *arguments,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: Process) -> Ended:
    """Waits for its end."""
    async with asyncio.timeout(ENDS_WITHIN_SECONDS):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, output.decode(), errors.decode())


async def squad(folder: Path, *arguments: str, **settings: str) -> Ended:
    """Runs it to its end."""
    return await end(await start(folder, *arguments, **settings))


@contextlib.asynccontextmanager
async def squad_command(
    *arguments: str, cwd: Path, command: Path | str | None = None
) -> AsyncIterator[Process]:
    """A command that runs; whatever is left of it after the block is killed."""
    process = await start(cwd, *arguments, command=command)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def finished(*arguments: str, cwd: Path) -> str:
    """What a command printed that went well."""
    ended = await squad(cwd, *arguments)
    assert ended.code == 0, ended.errors
    return ended.output

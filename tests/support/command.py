"""The `squad` command as users run it, in a separate process.

Normally that is a fork of a process that has loaded the command (tests/support/forked_command.py). With
`command=SQUAD`, or if an environment variable is given that Python reads at startup, it is the installed
command, found, started and loaded as for users.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from tests.support.forked_command import SQUAD, AsyncForkedProcess, can_be_forked, fork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = [
    "ENDS_WITHIN_SECONDS",
    "SQUAD",
    "CommandResult",
    "end",
    "squad",
    "squad_command",
    "squad_output",
    "start",
]

Process = asyncio.subprocess.Process | AsyncForkedProcess

ENDS_WITHIN_SECONDS = 60


class CommandResult(NamedTuple):
    """A command that has exited."""

    code: int
    output: str
    errors: str

    def lines(self) -> list[str]:
        """The lines that it printed; fails unless it succeeded."""
        assert (self.code, self.errors) == (0, ""), self
        return self.output.removesuffix("\n").split("\n") if self.output else []

    def error_line(self) -> str:
        """The one line that it printed to stderr; fails unless it failed."""
        assert self.code not in (0, None)
        assert self.output == ""
        [line] = self.errors.splitlines()
        return line.removeprefix("squad: ")


async def start(
    folder: Path, *arguments: str, command: Path | str | None = None, **settings: str
) -> Process:
    """Start the command in a folder, with only these settings, and with pipes for its output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SQUAD_")}
    environment = {**inherited, "COLUMNS": "160", **settings}
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


async def end(process: Process) -> CommandResult:
    """Wait until a command exits."""
    async with asyncio.timeout(ENDS_WITHIN_SECONDS):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return CommandResult(process.returncode, output.decode(), errors.decode())


async def squad(folder: Path, *arguments: str, **settings: str) -> CommandResult:
    """Run the command until it exits."""
    return await end(await start(folder, *arguments, **settings))


@contextlib.asynccontextmanager
async def squad_command(
    *arguments: str, cwd: Path, command: Path | str | None = None
) -> AsyncIterator[Process]:
    """A running command, killed after the block if it is still running."""
    process = await start(cwd, *arguments, command=command)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def squad_output(*arguments: str, cwd: Path) -> str:
    """Run the command, which must succeed; return its output."""
    ended = await squad(cwd, *arguments)
    assert ended.code == 0, ended.errors
    return ended.output

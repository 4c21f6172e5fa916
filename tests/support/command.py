"""The `squad` command as people type it, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SQUAD = Path(sys.executable).with_name("squad")
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
    folder: Path, *arguments: str, command: Path | str = SQUAD, **settings: str
) -> asyncio.subprocess.Process:
    """Starts it in a folder, with no settings but these, and with pipes for its output."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SQUAD_")}
    return await asyncio.create_subprocess_exec(
        command,
        *arguments,
        cwd=folder,
        env={**ours, "COLUMNS": "160", **settings},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process) -> Ended:
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
    *arguments: str, cwd: Path, command: Path | str = SQUAD
) -> AsyncIterator[asyncio.subprocess.Process]:
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

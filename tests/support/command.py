"""`squad` commands as processes of their own, which a test may stop or kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SQUAD = Path(sys.executable).with_name("squad")


@contextlib.asynccontextmanager
async def squad_command(*arguments: str, cwd: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that runs; whatever is left of it after the block is killed."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SQUAD_")}
    process = await asyncio.create_subprocess_exec(
        _SQUAD,
        *arguments,
        cwd=cwd,
        env={**ours, "COLUMNS": "160"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def finished(*arguments: str, cwd: Path) -> str:
    """What a command printed that went well."""
    async with squad_command(*arguments, cwd=cwd) as process:
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        return output.decode()

"""What benchmarks are made of: a Postgres, servers and load generators, all gone with the block."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.frame import Sample

_STARTS_WITHIN_SECONDS = 60.0
_STOPS_WITHIN_SECONDS = 10.0
_SQUAD = Path(sys.executable).with_name("squad")


class StageError(Exception):
    """Something that a benchmark needs did not start, or broke."""


@contextlib.asynccontextmanager
async def postgres() -> AsyncIterator[str]:
    """The DSN of an embedded Postgres of its own, with the settings that users have."""
    # Closed to nobody above it: where we are root, Postgres is another user.
    folder = Path(tempfile.mkdtemp(prefix="squad-bench-"))
    server = EmbeddedPostgres(folder)
    try:
        yield await server.start()
    finally:
        await server.stop()
        shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def service(dsn: str) -> AsyncIterator[str]:
    """The base URL of a `squad up` on this database."""
    async with _process(_SQUAD, "up", "--port=0", f"--dsn={dsn}") as process:
        line = await _first_line(process)
        yield line.rpartition(" ")[2]


@contextlib.asynccontextmanager
async def server(module: str) -> AsyncIterator[str]:
    """The base URL of one of our own servers for comparison."""
    async with _process(sys.executable, "-m", module) as process:
        yield await _first_line(process)


async def load(url: str, path: str, body: Any, *, connections: int, seconds: float) -> Sample:
    """What the load generator, in a process of its own, finds: see `benchmarks.load`."""
    arguments = (url, path, json.dumps(body), str(connections), str(seconds))
    async with _process(sys.executable, "-m", "benchmarks.load", *arguments) as process:
        assert process.stdout is not None
        async with asyncio.timeout(seconds + _STARTS_WITHIN_SECONDS):
            output = await process.stdout.read()
            if await process.wait() != 0:
                raise StageError(f"the load generator failed on {url}{path}")
    sample: Sample = json.loads(output)
    return sample


@contextlib.asynccontextmanager
async def _process(program: str | Path, *arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(program, *arguments, stdout=PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOPS_WITHIN_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _first_line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(_STARTS_WITHIN_SECONDS):
        line = (await process.stdout.readline()).decode().strip()
    if not line:
        raise StageError("a server ended instead of starting")
    return line

"""The parts of benchmarks: Postgres, servers and load generators, as context managers that clean up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from service.embedded import EmbeddedPostgres, temporary_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from benchmarks.harness import Sample

_STARTS_WITHIN_SECONDS = 60.0
_STOPS_WITHIN_SECONDS = 10.0
SQUAD = Path(sys.executable).with_name("squad")
"""The installed `squad` command."""


class Server(NamedTuple):
    """A server in a separate process."""

    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """The processor time used so far, without the database's."""
        used = self.process.cpu_times()
        return used.user + used.system


class StageError(Exception):
    """A process that a benchmark needs did not start, or failed."""


@contextlib.asynccontextmanager
async def postgres() -> AsyncIterator[str]:
    """Start a temporary embedded Postgres with the settings that users get; yield its DSN."""
    folder = temporary_folder("squad-bench-")
    server = EmbeddedPostgres(folder)
    try:
        yield await server.start()
    finally:
        await server.stop()
        shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def service(dsn: str, **settings: str) -> AsyncIterator[Server]:
    """Start `squad up` on this database, with a budget that no load exhausts."""
    environment = {"SQUAD_DAILY_TOKENS": "1000000000000", **settings}
    async with _process(SQUAD, "up", "--port=0", f"--dsn={dsn}", environment=environment) as process:
        line = await _first_line(process)
        yield Server(line.rpartition(" ")[2], psutil.Process(process.pid))


@contextlib.asynccontextmanager
async def server(module: str, *arguments: str) -> AsyncIterator[Server]:
    """Start a module as a server, which prints its URL once it listens."""
    async with _process(sys.executable, "-m", module, *arguments) as process:
        yield Server(await _first_line(process), psutil.Process(process.pid))


async def load(
    on: Server | Sequence[Server],
    method: str,
    path: str,
    body: Any = None,
    *,
    connections: int,
    seconds: float,
) -> Sample:
    """Run the load generator (see `benchmarks.load`); add the servers' processor time per request.

    The latter, `server_cpu_us`, shows a change in the code even on a busy machine.
    """
    servers = [on] if isinstance(on, Server) else on
    urls = ",".join(server.url for server in servers)
    text = "" if body is None else json.dumps(body)
    arguments = (urls, method, path, text, str(connections), str(seconds))
    before = sum(server.cpu_seconds() for server in servers)
    async with _process(sys.executable, "-m", "benchmarks.load", *arguments) as process:
        assert process.stdout is not None
        async with asyncio.timeout(seconds + _STARTS_WITHIN_SECONDS):
            output = await process.stdout.read()
            if await process.wait() != 0:
                raise StageError(f"the load generator failed on {urls} at {path}")
    used = sum(server.cpu_seconds() for server in servers) - before
    found: Sample = json.loads(output)
    requests = found.pop("requests")
    return {**found, "server_cpu_us": used / requests * 1_000_000}


@contextlib.asynccontextmanager
async def _process(
    program: str | Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    # The environment may have settings for a squad of the user's own.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SQUAD_")}
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=PIPE, env={**ours, **(environment or {})}
    )
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

"""The service as users run it: `squad up` in a separate process, stopped at the end of a block.

The process is a fork of one that has loaded the command (tests/support/forked_command.py).
A program can be given instead: `INSTALLED` is the command as it is found, started and loaded for users.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tests.support.forked_command import SQUAD, ForkedProcess, can_be_forked, start_fork_server
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_LISTENS_WITHIN_SECONDS = 30.0
_URL = re.compile(r"listening on (http://\S+)")
_SHOWN_CHARACTERS = 4_000

INSTALLED = (str(SQUAD),)
"""The installed command, as a program for `squad_up`."""

_PROBE = aiohttp.ClientTimeout(total=3)


class ServiceProcess:
    """One `squad up`, which can be started, stopped, killed and restarted, on a free port each time."""

    def __init__(
        self,
        *,
        dsn: str | None,
        data: Path | None,
        settings: Mapping[str, str],
        program: Sequence[str] | None = None,
    ) -> None:
        self.url = ""
        # Also its working folder, so that it does not read the developer's squad.toml.
        self._folder = Path(tempfile.mkdtemp(prefix="squad-process-"))
        self._output, self._errors = self._folder / "stdout", self._folder / "stderr"
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._program = program if program or can_be_forked(settings) else INSTALLED
        self._arguments = ("up", "--port=0", f"--dsn={dsn}" if dsn else f"--data={data}")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SQUAD_")}
        defaults = {"SQUAD_RESET_HOUR": _far_from_now(), "SQUAD_SEED_JOBS": "false"}
        self._environment = {**inherited, **defaults, **settings}

    @property
    def pid(self) -> int:
        """The pid of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is running; reaps it if it has exited."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process, and wait until it accepts requests."""
        assert not self.is_running
        await self._launch()
        self.url = await eventually(
            self._listening_url, within_seconds=_LISTENS_WITHIN_SECONDS, describe="squad up listens"
        )

    async def stop(self, *, within_seconds: float = 10.0) -> int:
        """Ask the process to stop, as a service manager does; return its exit code."""
        self.send(signal.SIGTERM)
        return await self.wait_for_exit(within_seconds=within_seconds)

    async def kill(self) -> None:
        """Kill the process."""
        self.send(signal.SIGKILL)
        await self.wait_for_exit()

    async def wait_for_exit(self, *, within_seconds: float = 10.0) -> int:
        """Wait until the process exits; return its exit code."""
        process = self._process
        assert process is not None
        await eventually(
            lambda: process.poll() is not None, within_seconds=within_seconds, describe="squad up exits"
        )
        code = process.poll()
        assert code is not None
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    async def is_ready(self) -> bool:
        """Whether it reports that it is ready; for `eventually`."""
        try:
            async with aiohttp.request("GET", f"{self.url}/readyz", timeout=_PROBE) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def is_not_ready(self) -> bool:
        """Whether it reports that it is not ready, or does not answer; for `eventually`."""
        return not await self.is_ready()

    async def metric(self, name: str) -> float:
        """The value of a metric, from /metrics."""
        async with aiohttp.request("GET", f"{self.url}/metrics", timeout=_PROBE) as response:
            text = await response.text()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found, f"there is no metric {name}"
        return float(found[1])

    def log_lines(self) -> list[str]:
        """The lines that it has logged so far."""
        return self._errors.read_text().splitlines()

    def output(self) -> str:
        """Its output so far; only the end if it is long."""
        text = self._output.read_text() + self._errors.read_text() if self._output.exists() else ""
        return f"output of `squad up`:\n{text[-_SHOWN_CHARACTERS:] or '(nothing)'}"

    def clean_up(self) -> None:
        """Kill the process, even if it is suspended, and remove its files."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder)

    async def _launch(self) -> None:
        if not self._program:
            await start_fork_server()
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes] | ForkedProcess:
        with (
            Path(os.devnull).open("rb") as empty,
            self._output.open("wb") as output,
            self._errors.open("ab") as errors,
        ):
            if self._program:
                return subprocess.Popen(
                    [*self._program, *self._arguments],
                    cwd=self._folder,
                    env=self._environment,
                    stdin=empty,
                    stdout=output,
                    stderr=errors,
                )
            return ForkedProcess(
                *self._arguments,
                cwd=self._folder,
                env=self._environment,
                stdin=empty.fileno(),
                stdout=output.fileno(),
                stderr=errors.fileno(),
            )

    def _listening_url(self) -> str:
        assert self.is_running, "squad up exited instead of starting"
        found = _URL.search(self._output.read_text())
        return found[1] if found else ""


@contextlib.asynccontextmanager
async def squad_up(
    *,
    dsn: str | None = None,
    data: Path | None = None,
    program: Sequence[str] | None = None,
    **settings: str,
) -> AsyncIterator[ServiceProcess]:
    """A running service on a database or a data folder, killed at the end of the block.

    If the test fails, the service's output is shown with the failure.

    Args:
        dsn: the database.
        data: the folder of the embedded Postgres, if no database is given.
        program: the program to run instead of a fork of the command.
        settings: environment variables.
    """
    service = ServiceProcess(dsn=dsn, data=data, settings=settings, program=program)
    try:
        await service.start()
        yield service
    except BaseException as error:
        error.add_note(service.output())
        raise
    finally:
        service.clean_up()


async def failed_start_output(*, dsn: str, **settings: str) -> str:
    """The output of a service that must fail to start."""
    service = ServiceProcess(dsn=dsn, data=None, settings=settings)
    try:
        await service._launch()
        assert await service.wait_for_exit(within_seconds=_LISTENS_WITHIN_SECONDS) != 0, service.output()
        return service.output()
    finally:
        service.clean_up()


def _far_from_now() -> str:
    """A reset hour far from now, so that no budget day begins while the tests run."""
    return str((datetime.now(UTC).hour + 12) % 24)

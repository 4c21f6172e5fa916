"""The `squad` command in a forked process, without the cost of loading it each time.

Loading takes longer than most of what the tests do with the command, and they start it hundreds of times.
So a separate process (tests/support/fork_server.py) loads it once, and forks. A fork has the arguments,
working folder, environment, standard streams, signals and process group that the installed command would
have. Variables that Python itself reads at startup (`PYTHONIOENCODING` and the like) have no effect on it,
and it is not suitable for a test of how the command is found, started or loaded.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

from tests.support.fork_server import NUMBER_BYTES, READY

if TYPE_CHECKING:
    from collections.abc import Mapping

SQUAD: Final = Path(sys.executable).with_name("squad")
"""The installed command."""

_ROOT = Path(__file__).parents[2]
_START_LOCK = Lock()
_VARIABLE_PREFIXES = ("SQUAD_", "PG", "COLUMNS")


def can_be_forked(settings: Mapping[str, str]) -> bool:
    """Whether a fork can have these environment variables as if it had been started with them."""
    # On systems other than Linux, not all libraries work after a fork.
    return sys.platform == "linux" and all(name.startswith(_VARIABLE_PREFIXES) for name in settings)


class ForkedProcess:
    """A forked command, with the interface of `subprocess.Popen`.

    Args:
        arguments: the arguments of the command.
        cwd: its working folder.
        env: its complete environment.
        stdin: a descriptor for its standard input, which the caller still owns.
        stdout: a descriptor for its output.
        stderr: a descriptor for its errors.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> None:
        self.returncode: int | None = None
        command = {"arguments": [str(SQUAD), *arguments], "folder": str(cwd), "environment": dict(env)}
        self._reply_socket, remote = socket.socketpair()
        with remote:
            socket.send_fds(_request_socket(), [b"F"], [remote.fileno(), stdin, stdout, stderr])
        self.pid = self._number(socket.MSG_WAITALL)
        self._reply_socket.sendall(json.dumps(command).encode())
        self._reply_socket.shutdown(socket.SHUT_WR)

    def poll(self) -> int | None:
        """The exit code, or minus the signal that killed it; None while it runs."""
        if self.returncode is None:
            try:
                self.returncode = self._number(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            self._reply_socket.close()
        return self.returncode

    def wait(self) -> int:
        """Wait until it exits."""
        while (code := self.poll()) is None:
            select.select([self], [], [])
        return code

    def fileno(self) -> int:
        """A descriptor that becomes readable once it has exited."""
        return self._reply_socket.fileno()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has exited."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _number(self, flags: int) -> int:
        reply = self._reply_socket.recv(NUMBER_BYTES, flags)
        if len(reply) != NUMBER_BYTES:
            raise ChildProcessError("the process that forks the command has exited")
        return int.from_bytes(reply, "big", signed=True)


class AsyncForkedProcess:
    """A forked command, with the interface of a process from `asyncio.create_subprocess_exec`."""

    def __init__(
        self, forked: ForkedProcess, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader
    ) -> None:
        self._forked = forked
        self._ended = asyncio.create_task(_end(forked))
        self.pid = forked.pid
        self.stdout, self.stderr = stdout, stderr

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal that killed it; None until that is known."""
        return self._forked.returncode

    async def wait(self) -> int:
        """Wait until it exits."""
        return await asyncio.shield(self._ended)

    async def communicate(self) -> tuple[bytes, bytes]:
        """Wait until it exits; return its output and its errors."""
        output, errors, _ = await asyncio.gather(self.stdout.read(), self.stderr.read(), self.wait())
        return output, errors

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it is known to have exited."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to exit."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


async def _end(forked: ForkedProcess) -> int:
    loop, exited = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(forked, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(forked)
    return forked.wait()


async def fork(*arguments: str, cwd: Path, env: Mapping[str, str]) -> AsyncForkedProcess:
    """Fork a command with an empty input, and with pipes for its output."""
    await start_fork_server()
    (output, to_output), (errors, to_errors) = os.pipe(), os.pipe()
    empty = os.open(os.devnull, os.O_RDONLY)
    try:
        forked = ForkedProcess(
            *arguments, cwd=cwd, env=env, stdin=empty, stdout=to_output, stderr=to_errors
        )
    finally:
        for descriptor in (empty, to_output, to_errors):
            os.close(descriptor)
    return AsyncForkedProcess(forked, await _reader(output), await _reader(errors))


async def start_fork_server() -> None:
    """Start the process that forks, unless it is running, and wait until it is ready."""
    await asyncio.to_thread(_request_socket)


async def _reader(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    return reader


def _request_socket() -> socket.socket:
    """The socket for requesting forks."""
    with _START_LOCK:
        return _fork_server()


@functools.cache
def _fork_server() -> socket.socket:
    """Start the process that forks; return the socket for requests to it."""
    requests, remote = socket.socketpair()
    with remote:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server", str(remote.fileno())],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            # Nothing is written to this pipe. It makes forks treat their output as going to a pipe.
            stdout=subprocess.PIPE,
            pass_fds=[remote.fileno()],
        )

    @atexit.register
    def end() -> None:
        requests.close()
        process.wait()

    if requests.recv(1) != READY:
        raise ChildProcessError("the command cannot be loaded; its output above says why")
    return requests

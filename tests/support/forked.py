"""The `squad` command in a forked process, without the cost of loading it each time.

Loading takes longer than most of what the tests have the command do, and they start it hundreds of times.
So a separate process (tests/support/fork_server.py) loads it once, and forks. A fork has the arguments,
working folder, environment, standard streams, signals and process group that the installed command would
have. What Python itself reads from the environment at startup (`PYTHONIOENCODING` and the like) has no
effect on it, and it is not suitable for a test of how the command is found, started or loaded.
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
_ONE_AT_A_TIME = Lock()
_READ_BY_THE_COMMAND = ("SQUAD_", "PG", "COLUMNS")


def can_be_forked(settings: Mapping[str, str]) -> bool:
    """Whether a fork can have these environment variables as if it had been started with them."""
    # On systems other than Linux, not all libraries work after a fork.
    return sys.platform == "linux" and all(name.startswith(_READ_BY_THE_COMMAND) for name in settings)


class Forked:
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
        order = {"arguments": [str(SQUAD), *arguments], "folder": str(cwd), "environment": dict(env)}
        self._conversation, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_asking(), [b"F"], [theirs.fileno(), stdin, stdout, stderr])
        self.pid = self._number(socket.MSG_WAITALL)
        self._conversation.sendall(json.dumps(order).encode())
        self._conversation.shutdown(socket.SHUT_WR)

    def poll(self) -> int | None:
        """The exit code, or minus the signal that killed it; None while it runs."""
        if self.returncode is None:
            try:
                self.returncode = self._number(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            self._conversation.close()
        return self.returncode

    def wait(self) -> int:
        """Wait until it exits."""
        while (code := self.poll()) is None:
            select.select([self], [], [])
        return code

    def fileno(self) -> int:
        """A descriptor that becomes readable once it has exited."""
        return self._conversation.fileno()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has exited."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _number(self, how: int) -> int:
        said = self._conversation.recv(NUMBER_BYTES, how)
        if len(said) != NUMBER_BYTES:
            raise ChildProcessError("the process that forks the command has ended")
        return int.from_bytes(said, "big", signed=True)


class ForkedWithPipes:
    """A forked command, with the interface of a process from `asyncio.create_subprocess_exec`."""

    def __init__(self, forked: Forked, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
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


async def _end(forked: Forked) -> int:
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(forked, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(forked)
    return forked.wait()


async def fork(*arguments: str, cwd: Path, env: Mapping[str, str]) -> ForkedWithPipes:
    """Fork a command with an empty input, and with pipes for its output."""
    await have_loaded()
    (output, to_output), (errors, to_errors) = os.pipe(), os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        forked = Forked(*arguments, cwd=cwd, env=env, stdin=nothing, stdout=to_output, stderr=to_errors)
    finally:
        for descriptor in (nothing, to_output, to_errors):
            os.close(descriptor)
    return ForkedWithPipes(forked, await _reader(output), await _reader(errors))


async def have_loaded() -> None:
    """Wait until there is a process to fork from, which the first call starts."""
    await asyncio.to_thread(_asking)


async def _reader(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    return reader


def _asking() -> socket.socket:
    """The socket for requesting forks."""
    with _ONE_AT_A_TIME:
        return _loaded()


@functools.cache
def _loaded() -> socket.socket:
    asking, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            # Nothing is written to this pipe. It makes forks treat their output as going to a pipe.
            stdout=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )

    @atexit.register
    def end() -> None:
        asking.close()
        process.wait()

    if asking.recv(1) != READY:
        raise ChildProcessError("the command cannot be loaded; why is said above")
    return asking

"""The processes of the demo: each has its own log file, and they are stopped in reverse order."""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_END_SECONDS = 20.0
_LINES_SHOWN = 15


class DemoFailed(Exception):
    """The demo cannot continue; the message says why."""


@dataclass(frozen=True)
class Child:
    """A process that we started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Check that the process is still running.

        Raises:
            DemoFailed: it has exited. The message has the end of its log.
        """
        if (code := self.process.poll()) is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:]
            said = "\n".join(f"    {line}" for line in lines) or "    (no output)"
            raise DemoFailed(f"{self.name} exited with code {code}; its last output:\n{said}")


@contextmanager
def running(
    name: str, command: Sequence[str], log: Path, *, cwd: Path, environment: Mapping[str, str]
) -> Iterator[Child]:
    """Run a process for as long as the context lasts.

    Args:
        name: its name in messages.
        command: program and arguments.
        log: the file for its output.
        cwd: its working directory.
        environment: its complete environment.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - programs of ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(environment),
            # Ctrl-C in the terminal must reach only us; we stop the children one by one.
            start_new_session=True,
        )
    try:
        yield Child(name, process, log)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports on this machine that are currently free."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()

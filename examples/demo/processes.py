"""The processes of the demo: each with its log, ended by its own id, the last one first."""

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
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Child:
    """A process that we started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Complains if it has ended by itself.

        Raises:
            DemoFailed: it has; with the end of its log.
        """
        if (code := self.process.poll()) is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:]
            said = "\n".join(f"    {line}" for line in lines) or "    (it said nothing)"
            raise DemoFailed(f"{self.name} ended with code {code}; its last words:\n{said}")


@contextmanager
def running(
    name: str, command: Sequence[str], log: Path, *, cwd: Path, environment: Mapping[str, str]
) -> Iterator[Child]:
    """Runs a process for as long as the context lasts.

    Args:
        name: what it is called.
        command: program and arguments.
        log: the file that its output goes to.
        cwd: the folder that it runs in.
        environment: all of its variables.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - programs of ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(environment),
            # Ctrl-C in the terminal is for us; we end the children one after another.
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
    """Ports on this machine that nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()

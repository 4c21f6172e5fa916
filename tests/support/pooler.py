"""Debian's pgbouncer in front of a database, to start, kill and restart."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_DEFAULT_SIZE = 20
"""pgbouncer's default number of server connections for each database and user."""

_CONFIGURATION = """\
[databases]
{name} = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
"""


class Pooler:
    """A pgbouncer process; `dsn` connects to the database through it."""

    def __init__(self, dsn: str, folder: Path, mode: str, size: int) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip("pgbouncer is not installed (apt-get install pgbouncer)")
        server = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
        server = {"user": "postgres", "port": "5432", **server}
        self._user = _owner_of_the_socket(server.get("host", ""))
        configuration, port = folder / "pgbouncer.ini", _free_port()
        configuration.write_text(
            _CONFIGURATION.format(
                name=server["dbname"], server=make_conninfo(**server), port=port, mode=mode, size=size
            )
        )
        for path in (folder, configuration):
            shutil.chown(path, self._user.pw_uid)
        self.dsn = make_conninfo(host="127.0.0.1", port=port, dbname=server["dbname"], user=server["user"])
        self._command = [program, str(configuration)]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until clients can connect through it."""
        self._launch()
        await eventually(self._answers, ignore=(psycopg.OperationalError,), describe="pgbouncer answers")

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _launch(self) -> None:
        is_root = os.geteuid() == 0
        with self._log.open("ab") as log:
            # It refuses to run as root, and only the server's own user can access the server's socket.
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                user=self._user.pw_uid if is_root else None,
                group=self._user.pw_gid if is_root else None,
                extra_groups=() if is_root else None,
            )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with psycopg.connect(self.dsn):
            return True


@contextlib.asynccontextmanager
async def pooler(
    dsn: str, mode: str = "transaction", *, size: int = _DEFAULT_SIZE
) -> AsyncIterator[Pooler]:
    """Run a pooler for the duration of the block; skip the test if pgbouncer is not installed."""
    folder = Path(tempfile.mkdtemp(prefix="squad-pooler-"))
    try:
        running = Pooler(dsn, folder, mode, size)
        try:
            await running.start()
            yield running
        finally:
            running.kill()
    finally:
        shutil.rmtree(folder)


def _owner_of_the_socket(host: str) -> pwd.struct_passwd:
    owner = Path(host).stat().st_uid if host.startswith("/") else os.geteuid()
    return pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port

"""Postgres servers for a test, such as a primary with a streaming standby, to kill, promote and copy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from service.embedded.cluster import PORT, SUPERUSER, Cluster
from service.embedded.programs import chown_to_server, grant_access, run
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    import aiohttp

STANDBY = "standby"
"""The application name of the standby, by which the primary knows it."""

_COPIED_WITHIN_SECONDS = 60.0


class Server:
    """A Postgres server with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.cluster = Cluster(folder / "postgres")

    @property
    def dsn(self) -> str:
        """The DSN of this server only."""
        return make_conninfo(host=str(self.cluster.data), port=PORT, user=SUPERUSER, dbname="postgres")

    async def start(self) -> None:
        """Create it if it does not exist, and start it."""
        await asyncio.to_thread(self.cluster.ensure_created)
        await asyncio.to_thread(self.cluster.ensure_running)

    async def stop(self) -> None:
        """Stop it cleanly."""
        await asyncio.to_thread(self.cluster.stop)

    def kill(self) -> None:
        """Kill all its processes, as when the machine crashes."""
        postmaster = self.cluster.postmaster()
        if postmaster is None:
            return
        processes = [psutil.Process(postmaster.pid)]
        processes += processes[0].children(recursive=True)
        shared = _shared_memory(processes)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        # A restart must not mistake an exiting process for the server.
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.01)
        # A crash removes shared memory; here it would stay until this machine is rebooted.
        for segment in shared:
            segment.unlink(missing_ok=True)

    async def query(self, statement: LiteralString | sql.Composed) -> Any:
        """The single value that a statement returns, or None."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(statement)
            row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    async def configure(self, statement: LiteralString | sql.Composed) -> None:
        """Change a setting of the running server."""
        await self.query(statement)
        await self.query("SELECT pg_reload_conf()")

    async def copy_to(self, other: Server, *options: str) -> None:
        """Create the other server from a base backup of this one."""
        data = other.cluster.data
        data.mkdir(mode=0o700)
        chown_to_server(data, self.cluster.data)
        grant_access(data)
        copied = await asyncio.to_thread(
            run,
            self.cluster.data,
            "pg_basebackup",
            f"--pgdata={data}",
            "--checkpoint=fast",
            f"--dbname={make_conninfo(self.dsn, application_name=STANDBY)}",
            *options,
            timeout_seconds=_COPIED_WITHIN_SECONDS,
        )
        assert copied.returncode == 0, copied.stdout

    async def replace_by(self, backup: Server) -> None:
        """Replace the data of this server, which must be stopped, by a backup."""
        await asyncio.to_thread(shutil.rmtree, self.cluster.data)
        await asyncio.to_thread(backup.cluster.data.rename, self.cluster.data)


class Pair:
    """A primary and its standby; `dsn` connects to the one that accepts writes."""

    def __init__(self, folder: Path) -> None:
        self.primary = Server(folder / "primary")
        self.standby = Server(folder / "standby")
        self.dsn = make_conninfo(
            host=f"{self.primary.cluster.data},{self.standby.cluster.data}",
            port=f"{PORT},{PORT}",
            user=SUPERUSER,
            dbname="postgres",
            target_session_attrs="read-write",
        )
        self._primary_conninfo = ""

    async def start(self) -> None:
        """Start both; from now on, commits wait for the standby."""
        await self.primary.start()
        await self.primary.copy_to(self.standby, "--write-recovery-conf")
        await self.standby.start()
        await self.primary.configure("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        await eventually(self._standby_is_synchronous, within_seconds=30, describe="the standby follows")

    async def disconnect_standby(self) -> None:
        """Disconnect the standby from the primary."""
        self._primary_conninfo = await self.standby.query("SELECT current_setting('primary_conninfo')")
        await self.standby.configure("ALTER SYSTEM SET primary_conninfo = ''")
        await eventually(self._standby_is_gone, within_seconds=30, describe="the standby is disconnected")

    async def reconnect_standby(self) -> None:
        """Reconnect the standby."""
        await self.standby.configure(
            sql.SQL("ALTER SYSTEM SET primary_conninfo = {}").format(sql.Literal(self._primary_conninfo))
        )
        await eventually(self._standby_is_synchronous, within_seconds=30, describe="the standby follows")

    async def fail_over(self) -> None:
        """Kill the primary and promote the standby."""
        self.primary.kill()
        await self.promote()

    async def promote(self) -> None:
        """Promote the standby."""
        assert await self.standby.query("SELECT pg_promote()")

    async def waiting_commits(self) -> int:
        """The number of commits that wait for the standby."""
        waiting = await self.primary.query(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        return int(waiting)

    async def _standby_is_synchronous(self) -> bool:
        return bool(
            await self.primary.query("SELECT bool_or(sync_state = 'sync') FROM pg_stat_replication")
        )

    async def _standby_is_gone(self) -> bool:
        return bool(await self.primary.query("SELECT count(*) = 0 FROM pg_stat_replication"))


def _shared_memory(processes: Iterable[psutil.Process]) -> set[Path]:
    """The shared memory files that the processes have open."""
    segments = set()
    for process in processes:
        with contextlib.suppress(psutil.Error, AttributeError):
            segments |= {region.path for region in process.memory_maps()}
    return {Path(path) for path in segments if path.startswith("/dev/shm/PostgreSQL.")}


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """A folder for servers, which are stopped at the end."""
    # Not in pytest's own folder, which each run makes inaccessible to other users, such as the servers'.
    folder = Path(tempfile.mkdtemp(prefix="squad-test-")).resolve()
    try:
        yield folder
    finally:
        for server in folder.iterdir():
            Server(server).kill()
        shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def primary_and_standby() -> AsyncIterator[Pair]:
    """A running pair, removed after the block."""
    with new_folder() as folder:
        pair = Pair(folder)
        await pair.start()
        yield pair


async def read_until_log_replaced(stream: aiohttp.ClientResponse) -> None:
    """Read an event stream until it reports that the log was replaced, and ends."""
    async for line in stream.content:
        if line == b"event: log_replaced\n":
            assert b"position" in await stream.content.readline()
            assert not (await stream.content.read()).strip()
            return
    pytest.fail("the stream ended without reporting that the log was replaced")

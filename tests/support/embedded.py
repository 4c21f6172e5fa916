"""Data folders for single tests, and the embedded Postgres in them: to start, inspect and kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from typing import TYPE_CHECKING
from urllib.parse import quote

from service.embedded import CLUSTER, EmbeddedPostgres, temporary_folder
from service.embedded.cluster import SUPERUSER, Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@contextlib.contextmanager
def new_data_folder() -> Iterator[Path]:
    """A folder for an embedded Postgres, which is stopped at the end even if another process started it."""
    # Not in pytest's own folder, which each run makes inaccessible to other users, such as the server's.
    folder = temporary_folder("squad-test-")
    try:
        yield folder
    finally:
        _cluster(folder).stop()
        shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def server_in(folder: Path) -> AsyncIterator[str]:
    """The DSN of the server in a data folder, which is started if it is not running."""
    server = EmbeddedPostgres(folder)
    try:
        yield await server.start()
    finally:
        await server.stop()


def dsn_of(folder: Path) -> str:
    """The DSN of the server in a data folder, without registering as one of its users."""
    return f"postgresql://{SUPERUSER}@/postgres?host={quote(str(folder / CLUSTER))}"


def postmaster_pid(folder: Path) -> int | None:
    """The pid of the server in a data folder, if it is running and accepts connections."""
    postmaster = _cluster(folder).postmaster()
    return postmaster.pid if postmaster and postmaster.is_ready else None


def kill_postmaster(folder: Path) -> int:
    """Kill the server in a data folder; return its pid."""
    pid = postmaster_pid(folder)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def _cluster(folder: Path) -> Cluster:
    return Cluster(folder / CLUSTER)

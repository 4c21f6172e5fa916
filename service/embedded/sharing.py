"""Sharing the server between processes: the first starts it, the last stops it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from service.embedded.cluster import PORT, START_TIMEOUT_SECONDS, SUPERUSER, Cluster
from service.embedded.errors import EmbeddedPostgresError, one_line_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLUSTER = "postgres"
"""The cluster's folder within the configured one."""

_DATABASE = "postgres"
_CHECK_SECONDS = 0.25
_BACKOFF_MAX_SECONDS = 15.0
# The process before us may be waiting for a recovery.
_LOCK_TIMEOUT_SECONDS = 2 * START_TIMEOUT_SECONDS
_STOP_REQUEST_SECONDS = 5.0
_POLL_SECONDS = 0.05

_log = logging.getLogger(__name__)


class EmbeddedPostgres:
    """This process's use of the Postgres in a folder: one object per process.

    If we are root, Postgres runs as a user of its own. To give it access, the folders above this one and
    above the installed binaries are made traversable for everybody, though not readable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._cluster = Cluster(self._folder / CLUSTER)
        # A cancelled start or restart goes on in its thread; stopping waits for it here.
        self._thread_lock = threading.Lock()
        self._use: int | None = None

    async def start(self) -> str:
        """Create and start the server if needed; return its DSN once it accepts connections.

        After a cancelled start, call `stop` to undo it.
        """
        return await asyncio.to_thread(self._start)

    async def supervise(self) -> None:
        """Restart the server whenever it has died, until cancelled.

        Any number of processes may do so: the first to notice restarts it, the others find it running.
        """
        delay = _CHECK_SECONDS
        while True:
            await asyncio.sleep(delay)
            try:
                had_died = await asyncio.to_thread(self._revive)
            except EmbeddedPostgresError as error:
                had_died = True
                _log.error("Postgres could not be restarted: %s", error)
            delay = min(2 * delay, _BACKOFF_MAX_SECONDS) if had_died else _CHECK_SECONDS

    async def stop(self) -> None:
        """Stop using the server, and stop it if nobody else uses it."""
        await asyncio.to_thread(self._stop)

    def abandon(self) -> None:
        """Have the server stop by itself, unless another process uses it; for a process that exits at once.

        It also works while a start or stop is in progress in its thread. It takes moments, seconds at most.
        """
        deadline = time.monotonic() + _STOP_REQUEST_SECONDS
        is_held = False
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                is_held = is_held or self._cluster.launching.acquire(blocking=False)
                use, postmaster = self._use, self._cluster.postmaster()
                if postmaster is None:
                    if is_held:
                        return
                elif use is not None:
                    if _try_lock(use):
                        self._cluster.request_stop(deadline)
                    return
                elif postmaster.is_stopping or not self._thread_lock.locked():
                    return
                time.sleep(_POLL_SECONDS)

    def _start(self) -> str:
        with self._thread_lock, one_line_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._folder_lock():
                if self._use is None:
                    self._use = self._begin_use()
                try:
                    self._cluster.ensure_created()
                    postmaster = self._cluster.ensure_running()
                except BaseException:
                    os.close(self._use)
                    self._use = None
                    raise
        host = quote(str(postmaster.socket_folder))
        return f"postgresql://{SUPERUSER}@/{_DATABASE}?host={host}&port={PORT}"

    def _revive(self) -> bool:
        """Start the server if it is dead; return whether it was."""
        with self._thread_lock, one_line_errors(self._folder):
            if self._use is None or self._cluster.postmaster() is not None:
                return False
            with self._folder_lock():
                if self._cluster.postmaster() is None:
                    # Never create a cluster here: that would silently replace a lost log by an empty one.
                    postmaster = self._cluster.ensure_running()
                    _log.warning("Postgres had died and was restarted: process %d", postmaster.pid)
            return True

    def _stop(self) -> None:
        with self._thread_lock, one_line_errors(self._folder):
            if self._use is None:
                return
            use, self._use = self._use, None
            with contextlib.ExitStack() as end_of_use:
                end_of_use.callback(os.close, use)
                # Our use must end before our turn does, or the next process to leave would not be the last.
                with self._folder_lock(), end_of_use:
                    if _try_lock(use):
                        self._cluster.stop()

    def _begin_use(self) -> int:
        use = _open(self._folder / "postgres.users")
        fcntl.flock(use, fcntl.LOCK_SH)
        return use

    @contextlib.contextmanager
    def _folder_lock(self) -> Iterator[None]:
        """Hold the lock for starting and stopping the server."""
        lock = _open(self._folder / "postgres.lock")
        try:
            deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
            while not _try_lock(lock):
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"another process has been starting or stopping the Postgres in {self._folder} "
                        f"for {_LOCK_TIMEOUT_SECONDS:g} s"
                    )
                time.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(lock)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

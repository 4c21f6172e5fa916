"""One Postgres cluster: create, start, find and stop its server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from service.embedded import configuration
from service.embedded.errors import EmbeddedPostgresError, complaint
from service.embedded.programs import MAJOR_VERSION, chown_to_server, grant_access, run, server_ids

SUPERUSER = "postgres"
PORT = 5432
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 60.0
INITDB_TIMEOUT_SECONDS = 120.0

_ORPHANS_EXIT_SECONDS = 2.0
_POLL_SECONDS = 0.05
# The smallest limit of all systems; Linux allows four bytes more.
_SOCKET_PATH_MAX_BYTES = 103
# pg_ctl puts the path into a shell command with only double quotes around it.
_NOT_IN_A_PATH = frozenset('"$`\\\n')


@dataclass(frozen=True)
class Postmaster:
    """A live server, as its pid file describes it."""

    pid: int
    is_ready: bool
    is_stopping: bool
    socket_folder: Path


class Cluster:
    """The Postgres cluster in `data`. To change anything, callers must hold the lock of its folder."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.launching = threading.Lock()
        """Held while a server is launched. Keeping it prevents further launches."""
        self._pid_file = data / "postmaster.pid"
        self._start_log = data / "start.log"

    def postmaster(self) -> Postmaster | None:
        """Return the live server of this cluster, no matter who started it."""
        lines = self._pid_file_lines()
        # A single-user server writes its pid negated. After a crash of the machine, the file may hold
        # anything.
        number = re.fullmatch(r"-?([0-9]{1,10})\s*", lines[0]) if lines else None
        if number is None or not self._is_ours(pid := int(number[1])):
            return None
        socket_folder = Path(lines[4]) if len(lines) > 4 else self.data
        status = lines[-1].strip()
        return Postmaster(pid, status == "ready", status == "stopping", socket_folder)

    def ensure_created(self) -> None:
        """Create the cluster unless it exists; raise if the existing one cannot be used."""
        if forbidden := _NOT_IN_A_PATH.intersection(str(self.data)):
            raise EmbeddedPostgresError(
                f"{self.data}: pg_ctl does not support a path that contains {min(forbidden)!r}"
            )
        if self.data.exists():
            owner = self.data.stat().st_uid
            if os.geteuid() not in (0, owner):
                raise EmbeddedPostgresError(f"{self.data} belongs to another user (uid {owner})")
            if (self.data / "PG_VERSION").exists():
                self._check_version()
                return
            if any(self.data.iterdir()):
                raise EmbeddedPostgresError(f"{self.data} is not empty and not a Postgres cluster")
        # We hold the lock, so these are leftovers of dead processes.
        for unfinished in self.data.parent.glob(f"{self.data.name}.new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        new = Path(tempfile.mkdtemp(dir=self.data.parent, prefix=f"{self.data.name}.new-"))
        try:
            self._initialize(new)
            new.rename(self.data)
            _sync(self.data.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def ensure_running(self) -> Postmaster:
        """Start the server unless it runs, and wait until it accepts connections."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            postmaster = self.postmaster()
            if postmaster is not None and postmaster.is_ready:
                return postmaster
            if time.monotonic() > deadline:
                # It is left running: if stopped now, its recovery would start over next time.
                raise EmbeddedPostgresError(
                    f"Postgres in {self.data} was not ready within {START_TIMEOUT_SECONDS:g} s; "
                    "it may still be recovering from a crash: try again later"
                )
            if postmaster is None:
                self._launch(deadline)
            else:
                time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop the server, if it runs, and wait: open transactions are rolled back, commits are kept."""
        postmaster = self.postmaster()
        if postmaster is None:
            return
        output = self._pg_ctl("stop", "--mode=fast", seconds=STOP_TIMEOUT_SECONDS)
        if self.postmaster() is not None:
            raise EmbeddedPostgresError(
                f"Postgres in {self.data} (process {postmaster.pid}) did not stop: {complaint(output)}"
            )
        if postmaster.socket_folder != self.data:
            with contextlib.suppress(OSError):
                postmaster.socket_folder.rmdir()

    def request_stop(self, deadline: float) -> None:
        """Tell the server to stop, if it runs, and wait only until it has begun to."""
        postmaster = self.postmaster()
        if postmaster is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(postmaster.pid, signal.SIGINT)
        while (server := self.postmaster()) and not server.is_stopping and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 10)

    def _check_version(self) -> None:
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != str(MAJOR_VERSION):
            raise EmbeddedPostgresError(
                f"{self.data} was created by Postgres {version}, and this is Postgres {MAJOR_VERSION}: run"
                " `squad export` with the version of squad that created it, and `squad import` with this"
                " one into another folder"
            )

    def _initialize(self, new: Path) -> None:
        chown_to_server(new, self.data)
        grant_access(new)
        result = run(
            self.data,
            "initdb",
            f"--pgdata={new}",
            f"--username={SUPERUSER}",
            "--encoding=UTF8",
            # The same sort order on every machine, independent of its C library.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            # The socket is in a folder that only its owner can enter.
            "--auth-local=trust",
            "--auth-host=reject",
            timeout_seconds=INITDB_TIMEOUT_SECONDS,
        )
        if result.returncode != 0:
            raise EmbeddedPostgresError(
                f"Postgres could not be set up in {self.data}: {complaint(result.stdout)}"
            )
        with (new / "postgresql.conf").open("a") as postgresql_conf:
            postgresql_conf.write(f"\ninclude_if_exists = '{configuration.FILE}'\n")
        _sync(new / "postgresql.conf")

    def _launch(self, deadline: float) -> None:
        self._check_no_hidden_server()
        if not self._wait_for_orphans(deadline):
            return
        grant_access(self.data)
        socket_folder = self._make_socket_folder()
        # Certainly stale, as no process is left. Postgres checks the pid in them, and would not start if
        # that is a zombie's or another program's by now.
        for stale in (self._pid_file, Path(f"{_socket(socket_folder)}.lock")):
            stale.unlink(missing_ok=True)
        settings = self.data / configuration.FILE
        settings.write_text(configuration.text(PORT, socket_folder))
        chown_to_server(settings, self.data)
        self._start_log.unlink(missing_ok=True)
        logged = self._log_sizes()
        with self.launching:
            output = self._pg_ctl("start", f"--log={self._start_log}", seconds=deadline - time.monotonic())
        if self.postmaster() is None:
            reason = complaint(self._logged_since(logged) or output)
            raise EmbeddedPostgresError(f"Postgres in {self.data} did not start: {reason}")

    def _pg_ctl(self, action: str, *arguments: str, seconds: float) -> str:
        """Run pg_ctl, which waits until the action is done or times out; return its output."""
        wait = f"--timeout={max(1.0, seconds):.0f}"
        arguments = ("--wait", wait, "--pgdata", str(self.data), *arguments)
        return run(self.data, "pg_ctl", action, *arguments, timeout_seconds=seconds + 30).stdout

    def _check_no_hidden_server(self) -> None:
        """Raise if a server is running that we cannot see, as when two containers share a volume."""
        lines = self._pid_file_lines()
        if len(lines) <= 4:
            return
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(1.0)
            client.connect(str(_socket(Path(lines[4]))))
            raise EmbeddedPostgresError(
                f"{self.data} is in use by a Postgres elsewhere, perhaps in a container"
            )

    def _wait_for_orphans(self, deadline: float) -> bool:
        """Wait for the children of a killed postmaster to end; False if there is a live one after all.

        They hold shared memory that prevents a new server from starting. They exit by themselves, unless
        they are busy computing.
        """
        timeout_at = time.monotonic() + _ORPHANS_EXIT_SECONDS
        while orphans := self._processes():
            if self.postmaster() is not None:
                # A process that was starting it has just been killed.
                return False
            if time.monotonic() > deadline:
                pids = ", ".join(str(process.pid) for process in orphans)
                raise EmbeddedPostgresError(
                    f"processes left over from a dead Postgres still use {self.data}: {pids}"
                )
            if time.monotonic() > timeout_at:
                for process in orphans:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGQUIT)
            time.sleep(_POLL_SECONDS)
        return True

    def _make_socket_folder(self) -> Path:
        """Return the data folder, or a new folder if its path is too long for a socket or has a comma.

        Clients parse a path with a comma as two hosts.
        """
        if len(os.fsencode(_socket(self.data))) <= _SOCKET_PATH_MAX_BYTES and "," not in str(self.data):
            return self.data
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        # Not in $TMPDIR: every process that restarts the server must arrive at the same path.
        folder = Path("/tmp") / f"squad-{digest}"  # noqa: S108 - its owner and mode are checked
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
        if not is_private or status.st_uid not in (os.geteuid(), server_ids(self.data)[0]):
            raise EmbeddedPostgresError(
                f"{folder} is needed for the socket, but is not a private folder of this user"
            )
        chown_to_server(folder, self.data)
        return folder

    def _pid_file_lines(self) -> list[str]:
        try:
            return self._pid_file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _is_ours(self, pid: int) -> bool:
        # A pid alone proves nothing: it may be a zombie's or another program's by now.
        try:
            process = psutil.Process(pid)
            return process.name() == "postgres" and process.cwd() == str(self.data)
        except psutil.Error:
            return False

    def _processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_ours(process.pid)]

    def _log_sizes(self) -> dict[Path, int]:
        logs = (self._start_log, *(self.data / "log").glob("*.log"))
        return {log: log.stat().st_size for log in logs if log.exists()}

    def _logged_since(self, sizes: dict[Path, int]) -> str:
        """Return what the server has logged since its logs had these sizes."""
        news = (log.read_bytes()[sizes.get(log, 0) :] for log in self._log_sizes())
        return b"".join(news).decode(errors="replace")


def _socket(folder: Path) -> Path:
    return folder / f".s.PGSQL.{PORT}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

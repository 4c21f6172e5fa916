"""The temporary folder of the tests: in memory, if there is room.

Each test database is some three hundred files, which are created and removed. On ext4, creating a file
skips the inodes of files removed in the last seconds, which takes more time than the copy itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 6 * 1024**3
"""The space needed: for the servers of four processes, with their write-ahead logs."""


def choose_folder() -> str:
    """Put temporary files of this process and its children in memory; return their folder.

    ``TMPDIR`` is respected if it is set.
    """
    if "TMPDIR" not in os.environ and _has_room(_MEMORY):
        os.environ["TMPDIR"] = str(_MEMORY)
        # It may have been cached already.
        tempfile.tempdir = None
    return tempfile.gettempdir()


def _has_room(folder: Path) -> bool:
    """Whether a folder is accessible, lets files be executed, and has enough free space."""
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return False
    may_run = not os.statvfs(folder).f_flag & os.ST_NOEXEC
    return may_run and shutil.disk_usage(folder).free >= _ENOUGH_BYTES

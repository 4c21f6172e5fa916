"""Where the tests keep what they throw away: in memory, where there is room for it.

A database of a test's own is some three hundred files, made and removed again. On ext4 each new file walks
past the inodes of those that were removed in the last seconds, which takes more time than the copy itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 6 * 1024**3
"""Of room: for the servers of four processes, with their write-ahead logs."""


def choose_folder() -> str:
    """Has temporary files, of this process and all that it starts, lie in memory; says where they lie.

    ``TMPDIR`` is respected where it is set.
    """
    if "TMPDIR" not in os.environ and _has_room(_MEMORY):
        os.environ["TMPDIR"] = str(_MEMORY)
        # It may have been asked for already.
        tempfile.tempdir = None
    return tempfile.gettempdir()


def _has_room(folder: Path) -> bool:
    """Whether a folder takes files that everybody can read and run, and many of them."""
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return False
    may_run = not os.statvfs(folder).f_flag & os.ST_NOEXEC
    return may_run and shutil.disk_usage(folder).free >= _ENOUGH_BYTES

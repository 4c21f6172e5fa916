"""Suspended processes, as after a laptop's sleep or on a frozen disk."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """Suspend a process for the duration of the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def backend_process(dsn: str, pid: int) -> psutil.Process:
    """The backend with this pid, if the server runs on this machine; otherwise skip the test.

    A container has its own pids, so the same pid may be an unrelated process here. Backends are identified
    by their title, which has the name of their database.
    """
    database = str(conninfo_to_dict(dsn)["dbname"])
    try:
        process = psutil.Process(pid)
        is_of_the_database = database in " ".join(process.cmdline())
    except psutil.Error:
        is_of_the_database = False
    if not is_of_the_database:
        pytest.skip("the server runs elsewhere, such as in a container: its processes cannot be stopped")
    return process

"""Processes that stand still for a while, as after a suspended laptop or a frozen disk."""

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
def stopped(process: psutil.Process) -> Iterator[None]:
    """A process that does nothing for the time of the block, unless it ends."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def backend_process(dsn: str, pid: int) -> psutil.Process:
    """The server process with this number, where it is one of this machine; skips the test otherwise.

    In a container numbers are others: here the same one may be anybody's. Server processes are known by
    their title, which names their database.
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

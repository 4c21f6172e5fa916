"""Listeners whose backend ends or stops reconnect within seconds and miss nothing."""

from __future__ import annotations

import contextlib
import os
import signal
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import psutil
import pytest

from projections.projector import Projector
from tests.support.components import backend_pids, connected, running, running_listener, terminate_backends
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.faults


async def test_events_are_projected_within_2_seconds_after_the_listener_loses_its_backend(
    database: str,
) -> None:
    async with (
        running_listener(database) as listener,
        running(Projector(database, "squad", listener.events).run()),
        connected(database) as connection,
    ):
        log_writer = LogWriter(connection)
        await log_writer.append(agent_registered("alice"))
        await eventually(partial(projected_to_head, database))
        for _ in range(3):
            assert await terminate_backends(connection, "squad listener") == 1
            await log_writer.append(message_sent("while nobody listens"))
            await eventually(partial(projected_to_head, database), within_seconds=2)
            await eventually(lambda: listener.hearing)
        assert listener.reconnects == 3


@contextlib.contextmanager
def _suspended(pid: int) -> Iterator[None]:
    """Suspend a server process of this machine, or skip the test if it cannot be signalled."""
    try:
        if not psutil.Process(pid).name().startswith("postgres"):
            raise ProcessLookupError
        os.kill(pid, signal.SIGSTOP)
    except (psutil.Error, OSError):
        pytest.skip("the server's processes cannot be signalled from here")
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def test_suspended_backend_is_replaced_within_15_seconds(database: str) -> None:
    async with running_listener(database) as listener, connected(database) as connection:
        (pid,) = await backend_pids(connection, "squad listener")
        with _suspended(pid):
            started = monotonic()
            await eventually(lambda: listener.reconnects > 0 and listener.hearing, within_seconds=15)
            remaining = 15 - (monotonic() - started)
            await LogWriter(connection).append(message_sent("heard by the new one"))
            await eventually(lambda: listener.events.position == 1, within_seconds=remaining)

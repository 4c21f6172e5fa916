"""Shutdown on a signal: every request is answered, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import aiohttp
import pytest

from eventstore import log
from eventstore.connection import connect
from tests.support.command import ENDS_WITHIN_SECONDS, SQUAD
from tests.support.components import SCHEMA, connected
from tests.support.embedded import dsn_of, new_data_folder, postmaster_pid
from tests.support.process import ServiceProcess, squad_up
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

CLIENTS = 32
STREAMS = 3
STOPS_WITHIN_SECONDS = 5.0
_TIMEOUT = aiohttp.ClientTimeout(total=20)


@dataclass
class Clients:
    """Clients that send one message after another until the service is gone."""

    url: str
    acknowledged: dict[int, str] = field(default_factory=dict)
    """The texts of the messages that were stored, by position."""
    codes: Counter[str] = field(default_factory=Counter)
    """How often each problem was answered."""
    streamed: list[int] = field(default_factory=list)

    async def send(self, session: aiohttp.ClientSession, name: str) -> None:
        """Send messages as one client."""
        number = 0
        while True:
            number += 1
            text = f"{name} says {number}"
            try:
                async with session.post(
                    f"{self.url}/api/v1/messages", json={"from_agent": name, "message": text}
                ) as response:
                    body = json.loads(await response.read())
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                return
            if response.status == 201:
                self.acknowledged[body["position"]] = text
            else:
                assert response.status == 503, body
                assert int(response.headers["Retry-After"]) > 0
                self.codes[body["code"]] += 1

    async def read_stream(self, session: aiohttp.ClientSession) -> None:
        """Read the stream until it ends."""
        async with session.get(f"{self.url}/api/v1/events/stream?after=0") as response:
            async for line in response.content:
                if line.startswith(b"id: "):
                    self.streamed.append(int(line[4:]))


async def _stored_texts(dsn: str, positions: Sequence[int]) -> dict[int, str]:
    async with connected(dsn) as connection:
        events = await log.read_after(connection, 0, 1_000_000)
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    return {position: json.loads(events[position - 1].data)["message"] for position in positions}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_first_signal_under_load_stops_service_and_loses_nothing(
    database: str, number: signal.Signals
) -> None:
    async with squad_up(dsn=database) as process:
        clients = Clients(process.url)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for index in range(STREAMS):
                tasks.create_task(clients.read_stream(session), name=f"reader {index}")
            for index in range(CLIENTS):
                tasks.create_task(clients.send(session, f"client-{index}"))
            await eventually(lambda: len(clients.acknowledged) > 500 and len(clients.streamed) > 500)
            sent_at = time.monotonic()
            process.send(number)
            assert await process.wait_for_exit(within_seconds=STOPS_WITHIN_SECONDS) == 0, process.output()
            assert time.monotonic() - sent_at < STOPS_WITHIN_SECONDS
        assert set(clients.codes) <= {"stopping"}
        positions = sorted(clients.acknowledged)
        assert await _stored_texts(database, positions) == clients.acknowledged
        await _assert_refuses_connections(process)
        await process.start()
        async with aiohttp.request("GET", f"{process.url}/api/v1/events/{positions[-1]}") as response:
            assert (await response.json())["data"]["message"] == clients.acknowledged[positions[-1]]
        assert await process.stop() == 0


async def _assert_refuses_connections(process: ServiceProcess) -> None:
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.request("GET", f"{process.url}/healthz"):
            pass


async def test_idle_and_incomplete_requests_do_not_delay_shutdown(database: str) -> None:
    async with squad_up(dsn=database) as process:
        host, port = process.url.removeprefix("http://").split(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
        for index, (_, writer) in enumerate(idle):
            if index > 1:
                writer.write(b"POST /api/v1/messages HTTP/1.1\r\nHost: localhost\r\n")
            if index > 3:
                writer.write(b'Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"from_')
            await writer.drain()
        try:
            assert await process.stop(within_seconds=STOPS_WITHIN_SECONDS) == 0
        finally:
            for _, writer in idle:
                writer.close()


async def test_second_sigterm_changes_nothing(database: str) -> None:
    """As by make, when its whole process group receives one."""
    async with squad_up(dsn=database) as process, _locked_log(process, database):
        process.send(signal.SIGTERM)
        await _is_stopping(process)
        process.send(signal.SIGTERM)
        assert await process.wait_for_exit(within_seconds=3 * STOPS_WITHIN_SECONDS) == 0, process.output()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_sigint_during_shutdown_ends_service_at_once(database: str, first: signal.Signals) -> None:
    async with squad_up(dsn=database) as process, _locked_log(process, database):
        process.send(first)
        await _is_stopping(process)
        process.send(signal.SIGINT)
        assert await process.wait_for_exit(within_seconds=STOPS_WITHIN_SECONDS) == 1, process.output()


async def test_sigint_during_shutdown_still_stops_embedded_postgres() -> None:
    with new_data_folder() as folder:
        async with squad_up(data=folder) as process, _locked_log(process, dsn_of(folder)):
            process.send(signal.SIGINT)
            await _is_stopping(process)
            process.send(signal.SIGINT)
            assert await process.wait_for_exit(within_seconds=STOPS_WITHIN_SECONDS) == 1, process.output()
        await eventually(lambda: postmaster_pid(folder) is None)


_WITH_HANGUP = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[2], sys.argv[2:])
"""


async def test_service_stops_when_its_terminal_is_closed(database: str, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _WITH_HANGUP, "SIG_DFL"),
        *(SQUAD, "up", "--port", "0", "--dsn", database),
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    output = b""
    while b"Ctrl-C" not in output:
        output += await asyncio.to_thread(os.read, ours, 1_000)
    os.close(ours)
    assert await asyncio.wait_for(process.wait(), ENDS_WITHIN_SECONDS) == 0


async def test_service_under_nohup_survives_sighup(database: str, tmp_path: Path) -> None:
    program = (sys.executable, "-c", _WITH_HANGUP, "SIG_IGN", str(SQUAD))
    async with squad_up(dsn=database, program=program) as process:
        process.send(signal.SIGHUP)
        async with aiohttp.request("GET", f"{process.url}/readyz") as response:
            assert (await response.json())["stopping"] is False
        assert await process.stop() == 0


@asynccontextmanager
async def _locked_log(process: ServiceProcess, database: str) -> AsyncIterator[None]:
    """Hold the log's lock for the duration of the block, so that a command of the service waits for it."""
    connection = await connect(database, SCHEMA, name="squad test")
    try:
        await connection.execute("BEGIN")
        await log.lock(connection)
        message = {"from_agent": "ada", "message": "am I heard?"}
        posting = asyncio.create_task(_post(f"{process.url}/api/v1/messages", message))
        await eventually(partial(_waits_for_the_lock, database))
        yield
        await asyncio.wait({posting})
    finally:
        await connection.close()


async def _post(url: str, body: dict[str, str]) -> None:
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with aiohttp.request("POST", url, json=body):
            pass


async def _waits_for_the_lock(dsn: str) -> bool:
    async with connected(dsn) as connection:
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
        return await (await connection.execute(waiting)).fetchone() is not None


async def _is_stopping(process: ServiceProcess) -> None:
    await eventually(lambda: "squad is stopping" in process.output())

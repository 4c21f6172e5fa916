"""A service whose backends end or are suspended: it detects this and loses nothing."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.components import backend_pids, connected, terminate_backends
from tests.support.load import Load
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.process import squad_up
from tests.support.proxy import Proxy
from tests.support.signals import backend_process, suspended
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

PROJECTED_WITHIN_SECONDS = 2.0
"""After a lost connection: one of the listener's first retries succeeds."""

LISTENER_REPLACED_WITHIN_SECONDS = 15.0
"""After its backend is suspended: two heartbeats and a retry."""

READ_WITHIN_SECONDS = 15.0
"""After idle readers' backends are suspended: each is given up after 5 seconds, and replaced."""

ANSWERED_WITHIN_SECONDS = 15.0
"""After the writer's backend is suspended: a round trip is given up after 10 seconds."""


async def test_events_are_projected_within_2_seconds_after_the_listener_loses_its_backend(
    database: str,
) -> None:
    async with squad_up(dsn=database) as service, connected(database) as connection:
        log_writer = await start_following(service, connection)
        assert await terminate_backends(connection, "squad listener") == 1
        (message,) = await log_writer.append(message_sent("is anybody there?"))
        await eventually(
            lambda: is_projected(connection, message.position), within_seconds=PROJECTED_WITHIN_SECONDS
        )


async def test_events_are_projected_while_a_suspended_listener_is_being_replaced(
    database: str,
) -> None:
    async with squad_up(dsn=database) as service, connected(database) as connection:
        log_writer = await start_following(service, connection)
        (pid,) = await backend_pids(connection, "squad listener")
        with suspended(backend_process(database, pid)):
            (message,) = await log_writer.append(message_sent("is anybody there?"))
            await eventually(
                lambda: is_projected(connection, message.position),
                within_seconds=LISTENER_REPLACED_WITHIN_SECONDS,
            )
            await eventually(
                lambda: has_another_listener(service, connection, pid),
                within_seconds=LISTENER_REPLACED_WITHIN_SECONDS,
            )


async def test_service_recovers_while_the_listeners_backend_is_suspended(database: str) -> None:
    async with squad_up(dsn=database) as service, connected(database) as connection:
        await eventually(lambda: is_listening(service))
        (pid,) = await backend_pids(connection, "squad listener")
        trial = Trial(
            "SIGSTOP of the listener's backend", LISTENER_REPLACED_WITHIN_SECONDS, Load([service])
        )
        async with trial.running():
            with trial.fault_injection():
                suspension = suspended(backend_process(database, pid))
            # The backend stays suspended: the service must detect this and recover by itself.
            with suspension:
                await eventually(
                    lambda: has_another_listener(service, connection, pid),
                    within_seconds=LISTENER_REPLACED_WITHIN_SECONDS,
                )
                await trial.wait_until_recovered(service)
        await trial.verify(database)


async def test_service_recovers_from_a_partition_of_the_listeners_network(database: str) -> None:
    """The connection is half-open: neither end learns that the other is unreachable."""
    async with (
        Proxy(database).running() as proxy,
        squad_up(dsn=database, SQUAD_LISTEN_DSN=proxy.dsn) as service,
        connected(database) as connection,
    ):
        await eventually(service.is_ready)
        trial = Trial(
            "network swallows what the listener hears", LISTENER_REPLACED_WITHIN_SECONDS, Load([service])
        )
        async with trial.running():
            with trial.fault_injection(), proxy.partitioned():
                await eventually(service.is_not_ready, within_seconds=LISTENER_REPLACED_WITHIN_SECONDS)
                position = await send_message(service, "is anybody there?")
                await eventually(
                    lambda: is_projected(connection, position), within_seconds=PROJECTED_WITHIN_SECONDS
                )
            await trial.wait_until_recovered(service)
        await trial.verify(database)


async def send_message(service: ServiceProcess, text: str) -> int:
    """Send a message through the service; return its position."""
    body = {"from_agent": "alice", "message": text}
    async with aiohttp.request("POST", f"{service.url}/api/v1/messages", json=body) as response:
        position: int = (await response.json())["position"]
        return position


async def test_commands_are_answered_while_the_writers_idle_backend_is_suspended(database: str) -> None:
    async with squad_up(dsn=database) as service, connected(database) as connection:
        (pid,) = await backend_pids(connection, "squad writer")
        load = Load([service])
        # It is suspended while idle, so that it does not hold the log's lock.
        with suspended(backend_process(database, pid)):
            async with load.running():
                await load.wait_for_answers(within_seconds=ANSWERED_WITHIN_SECONDS)
        # The resumed backend has its own copy of the batch, which must not be appended a second time.
        await eventually(lambda: has_ended(connection, pid))
        await load.assert_log_matches_answers(database)


async def test_commands_are_answered_after_the_writers_backend_was_suspended_under_load(
    database: str,
) -> None:
    async with squad_up(dsn=database) as service, connected(database) as connection:
        (pid,) = await backend_pids(connection, "squad writer")
        trial = Trial("SIGSTOP of the writer's backend", ANSWERED_WITHIN_SECONDS, Load([service]))
        async with trial.running():
            with trial.fault_injection(), suspended(backend_process(database, pid)):
                # It may hold the log's lock, so that nobody else can get it.
                await eventually(
                    lambda: has_another_writer(connection, pid), within_seconds=ANSWERED_WITHIN_SECONDS
                )
            await trial.wait_until_recovered(service)
        await trial.verify(database)


async def test_reads_are_answered_while_an_idle_readers_backend_is_suspended(database: str) -> None:
    async with squad_up(dsn=database) as service, connected(database) as connection:
        position = await send_message(service, "is anybody there?")
        await eventually(lambda: is_projected(connection, position))
        url = f"{service.url}/api/v1/messages"
        async with aiohttp.request("GET", url) as response:
            assert response.status == 200
        with ExitStack() as stack:
            for pid in await backend_pids(connection, "squad reader"):
                stack.enter_context(suspended(backend_process(database, pid)))
            timeout = aiohttp.ClientTimeout(READ_WITHIN_SECONDS)
            async with aiohttp.request("GET", url, timeout=timeout) as response:
                assert response.status in (200, 503)
            await eventually(lambda: is_readable(url), within_seconds=READ_WITHIN_SECONDS)


async def is_readable(url: str) -> bool:
    async with aiohttp.request("GET", url) as response:
        return response.status == 200


async def start_following(service: ServiceProcess, connection: Connection) -> LogWriter:
    """Wait until the service listens and projects; return a writer that appends independently of it."""
    log_writer = LogWriter(connection)
    await log_writer.catch_up()
    (agent,) = await log_writer.append(agent_registered("alice"))
    await eventually(lambda: is_listening(service))
    (message,) = await log_writer.append(message_sent("hello"))
    assert agent.position < message.position
    await eventually(lambda: is_projected(connection, message.position))
    return log_writer


async def is_listening(service: ServiceProcess) -> bool:
    return await service.metric("squad_listener_hearing") == 1


async def is_projected(connection: Connection, position: int) -> bool:
    cursor = await connection.execute("SELECT 1 FROM squad_messages WHERE position = %s", (position,))
    return await cursor.fetchone() is not None


async def has_another_listener(service: ServiceProcess, connection: Connection, pid: int) -> bool:
    return await is_listening(service) and set(await backend_pids(connection, "squad listener")) != {pid}


async def has_another_writer(connection: Connection, pid: int) -> bool:
    return bool(set(await backend_pids(connection, "squad writer")) - {pid})


async def has_ended(connection: Connection, pid: int) -> bool:
    return pid not in await backend_pids(connection, "squad writer")

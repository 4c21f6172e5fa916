"""A service one of whose backends ends, or stands still: it notices, and nothing is lost by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.load import Load
from tests.support.log import LogWriter, joined, said
from tests.support.parts import backends, connected, terminate
from tests.support.process import squad_up
from tests.support.proxy import Proxy
from tests.support.signals import backend_process, stopped
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

SHOWN_WITHIN_SECONDS = 2.0
"""After a lost connection: one of the listener's first attempts succeeds."""

HEARD_AGAIN_WITHIN_SECONDS = 15.0
"""After a stopped backend: two heartbeats and an attempt."""

ANSWERED_WITHIN_SECONDS = 15.0
"""After the writer's backend stopped: a round trip is given up after 10 seconds."""


async def test_what_is_appended_after_the_listener_lost_its_backend_is_in_the_table_in_two_seconds(
    database: str,
) -> None:
    async with squad_up(dsn=database) as service, connected(database) as elsewhere:
        scribe = await listened_to(service, elsewhere)
        assert await terminate(elsewhere, "squad listener") == 1
        (message,) = await scribe.append(said("is anybody there?"))
        await eventually(lambda: is_shown(elsewhere, message.position), within_seconds=SHOWN_WITHIN_SECONDS)


async def test_what_is_appended_while_the_listener_is_deaf_is_in_the_table_and_the_listener_is_replaced(
    database: str,
) -> None:
    async with squad_up(dsn=database) as service, connected(database) as elsewhere:
        scribe = await listened_to(service, elsewhere)
        (pid,) = await backends(elsewhere, "squad listener")
        with stopped(backend_process(database, pid)):
            (message,) = await scribe.append(said("is anybody there?"))
            await eventually(
                lambda: is_shown(elsewhere, message.position), within_seconds=HEARD_AGAIN_WITHIN_SECONDS
            )
            await eventually(
                lambda: has_another_listener(service, elsewhere, pid),
                within_seconds=HEARD_AGAIN_WITHIN_SECONDS,
            )


async def test_all_goes_on_while_the_listeners_backend_stands_still(database: str) -> None:
    async with squad_up(dsn=database) as service, connected(database) as elsewhere:
        await eventually(lambda: is_heard(service))
        (pid,) = await backends(elsewhere, "squad listener")
        trial = Trial("SIGSTOP of the listener's backend", HEARD_AGAIN_WITHIN_SECONDS, Load([service]))
        async with trial.running():
            with trial.cause():
                standing_still = stopped(backend_process(database, pid))
            # It stays so: the service has to find out, and to help itself.
            with standing_still:
                await eventually(
                    lambda: has_another_listener(service, elsewhere, pid),
                    within_seconds=HEARD_AGAIN_WITHIN_SECONDS,
                )
                await trial.well(service)
        await trial.judge(database)


async def test_all_goes_on_while_the_listeners_network_swallows_everything(database: str) -> None:
    """It is half open: neither end is told anything."""
    async with (
        Proxy(database).running() as proxy,
        squad_up(dsn=database, SQUAD_LISTEN_DSN=proxy.dsn) as service,
        connected(database) as elsewhere,
    ):
        await eventually(service.is_ready)
        trial = Trial(
            "network swallows what the listener hears", HEARD_AGAIN_WITHIN_SECONDS, Load([service])
        )
        async with trial.running():
            with trial.cause(), proxy.swallowing():
                await eventually(service.is_not_ready, within_seconds=HEARD_AGAIN_WITHIN_SECONDS)
                answer = await say(service, "is anybody there?")
                await eventually(lambda: is_shown(elsewhere, answer), within_seconds=SHOWN_WITHIN_SECONDS)
            await trial.well(service)
        await trial.judge(database)


async def say(service: ServiceProcess, text: str) -> int:
    """Has the service send a message; returns its position."""
    body = {"from_agent": "alice", "message": text}
    async with aiohttp.request("POST", f"{service.url}/api/v1/messages", json=body) as response:
        position: int = (await response.json())["position"]
        return position


async def test_commands_are_answered_again_while_the_writers_backend_stands_still(database: str) -> None:
    async with squad_up(dsn=database) as service, connected(database) as elsewhere:
        (pid,) = await backends(elsewhere, "squad writer")
        load = Load([service])
        # It stops before it is asked for anything, so that it does not take the log's lock with it.
        with stopped(backend_process(database, pid)):
            async with load.running():
                await load.more(within_seconds=ANSWERED_WITHIN_SECONDS)
        # It has carried on by now, with the batch that it was sent. That one came back another way.
        await eventually(lambda: has_ended(elsewhere, pid))
        await load.assert_kept(database)


async def test_commands_are_answered_again_after_the_writers_backend_stood_still_in_a_batch(
    database: str,
) -> None:
    async with squad_up(dsn=database) as service, connected(database) as elsewhere:
        (pid,) = await backends(elsewhere, "squad writer")
        trial = Trial("SIGSTOP of the writer's backend", ANSWERED_WITHIN_SECONDS, Load([service]))
        async with trial.running():
            with trial.cause(), stopped(backend_process(database, pid)):
                # It may hold the log's lock, which is nobody else's to take.
                await eventually(
                    lambda: has_other_writer(elsewhere, pid), within_seconds=ANSWERED_WITHIN_SECONDS
                )
            await trial.well(service)
        await trial.judge(database)


async def listened_to(service: ServiceProcess, connection: Connection) -> LogWriter:
    """Waits until the service hears and projects; gives somebody who appends without it."""
    scribe = LogWriter(connection)
    await scribe.catch_up()
    (agent,) = await scribe.append(joined("alice"))
    await eventually(lambda: is_heard(service))
    (message,) = await scribe.append(said("hello"))
    assert agent.position < message.position
    await eventually(lambda: is_shown(connection, message.position))
    return scribe


async def is_heard(service: ServiceProcess) -> bool:
    return await service.metric("squad_listener_hearing") == 1


async def is_shown(connection: Connection, position: int) -> bool:
    cursor = await connection.execute("SELECT 1 FROM squad_messages WHERE position = %s", (position,))
    return await cursor.fetchone() is not None


async def has_another_listener(service: ServiceProcess, connection: Connection, pid: int) -> bool:
    return await is_heard(service) and set(await backends(connection, "squad listener")) != {pid}


async def has_other_writer(connection: Connection, pid: int) -> bool:
    return bool(set(await backends(connection, "squad writer")) - {pid})


async def has_ended(connection: Connection, pid: int) -> bool:
    return pid not in await backends(connection, "squad writer")

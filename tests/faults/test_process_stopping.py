"""SIGTERM while streams are open, the queue is full and another session holds the log's lock."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from service.writing.command_queue import MAX_WAITING_COMMANDS
from tests.support.components import connected
from tests.support.load import Load
from tests.support.log import message_texts, whole_log
from tests.support.process import squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

STREAMS = 200
BATCH = 1_000
BATCHES = MAX_WAITING_COMMANDS // BATCH + 2
"""One batch is taken from the queue at once, and one does not fit into it."""

STOP_TIMEOUT_SECONDS = 8.0
"""Waiting commands get 2.5 seconds; then all callers are answered, about ten thousand."""

RECOVERY_SECONDS = 15.0
"""Includes the start of the process."""

NOT_CARRIED_OUT = {"queue_full", "stopping", "unavailable"}

_TIMEOUT = aiohttp.ClientTimeout(total=60)


async def test_service_stops_in_time_with_open_streams_and_a_full_queue(database: str) -> None:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(squad_up(dsn=database))
        holder = await stack.enter_async_context(connected(database))
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector)
        )
        trial = Trial(
            f"SIGTERM with {STREAMS} open streams and a full queue", RECOVERY_SECONDS, Load([service])
        )
        async with trial.running():
            with trial.fault_injection():
                streams = [asyncio.create_task(listen(session, service)) for _ in range(STREAMS)]
                await eventually(lambda: reaches(service, "squad_open_streams", STREAMS))
                await holder.execute("BEGIN")
                await holder.execute("SELECT lock_log()")
                batches = [
                    asyncio.create_task(send_batch(session, service, number)) for number in range(BATCHES)
                ]
                await eventually(lambda: reaches(service, "squad_waiting_commands", MAX_WAITING_COMMANDS))
                signalled = monotonic()
                assert await service.stop(within_seconds=STOP_TIMEOUT_SECONDS) == 0
                assert monotonic() - signalled < STOP_TIMEOUT_SECONDS
                await holder.execute("ROLLBACK")
                # Every client is answered, or its connection is closed.
                answers = [answer for results in await asyncio.gather(*batches) for answer in results]
                await asyncio.gather(*streams)
            await service.start()
            await trial.wait_until_recovered(service)
        await trial.verify(database)
        logged = Counter(message_texts(await whole_log(holder)))
    assert len(answers) == BATCHES * BATCH
    codes = Counter(code for _, code in answers)
    assert codes["queue_full"] > 0
    for text, code in answers:
        if code in NOT_CARRIED_OUT:
            assert logged[text] == 0, f"{text} was answered {code}, but is in the log"
        else:
            assert code == "outcome_unknown"
            assert logged[text] <= 1


async def send_batch(
    session: aiohttp.ClientSession, service: ServiceProcess, number: int
) -> list[tuple[str, str]]:
    """Send a batch of messages; return the text and the problem code of each."""
    sent = [f"batch {number}, message {index}" for index in range(BATCH)]
    commands = [
        {"method": "POST", "path": "/api/v1/messages", "body": {"from_agent": "crowd", "message": text}}
        for text in sent
    ]
    async with session.post(f"{service.url}/api/v1/batch", json={"commands": commands}) as response:
        results: list[dict[str, Any]] = json.loads(await response.read())["results"]
    return [(text, result["body"]["code"]) for text, result in zip(sent, results, strict=True)]


async def listen(session: aiohttp.ClientSession, service: ServiceProcess) -> None:
    """Read an event stream until it ends."""
    async with session.get(f"{service.url}/api/v1/events/stream") as response:
        assert response.status == 200
        async for _ in response.content:
            pass


async def reaches(service: ServiceProcess, metric: str, value: float) -> bool:
    return await service.metric(metric) >= value

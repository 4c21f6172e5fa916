"""SIGTERM at the worst moment: streams open, the queue full, and somebody else keeps the log's lock."""

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
from tests.support.load import Load
from tests.support.log import texts, whole_log
from tests.support.parts import connected
from tests.support.process import squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

STREAMS = 200
BATCH = 1_000
BATCHES = MAX_WAITING_COMMANDS // BATCH + 2
"""One is taken out of the queue at once, and one finds no room."""

STOP_TIMEOUT_SECONDS = 8.0
"""What waits has 2.5 seconds to get through; then everybody is told: some ten thousand answers."""

AFTER_A_START_SECONDS = 15.0
"""A start, from a process that is not there yet."""

NOT_CARRIED_OUT = {"queue_full", "stopping", "unavailable"}

_TIMEOUT = aiohttp.ClientTimeout(total=60)


async def test_sigterm_with_open_streams_and_a_full_queue(database: str) -> None:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(squad_up(dsn=database))
        holder = await stack.enter_async_context(connected(database))
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector)
        )
        trial = Trial(
            f"SIGTERM with {STREAMS} open streams and a full queue", AFTER_A_START_SECONDS, Load([service])
        )
        async with trial.running():
            with trial.cause():
                streams = [asyncio.create_task(listen(session, service)) for _ in range(STREAMS)]
                await eventually(lambda: has(service, "squad_open_streams", STREAMS))
                await holder.execute("BEGIN")
                await holder.execute("SELECT lock_log()")
                batches = [asyncio.create_task(ask(session, service, number)) for number in range(BATCHES)]
                await eventually(lambda: has(service, "squad_waiting_commands", MAX_WAITING_COMMANDS))
                asked = monotonic()
                assert await service.stop(within_seconds=STOP_TIMEOUT_SECONDS) == 0
                assert monotonic() - asked < STOP_TIMEOUT_SECONDS
                await holder.execute("ROLLBACK")
                # Whoever was connected is told, or sees the end of it.
                told = [one for results in await asyncio.gather(*batches) for one in results]
                await asyncio.gather(*streams)
            await service.start()
            await trial.well(service)
        await trial.judge(database)
        said = Counter(texts(await whole_log(holder)))
    assert len(told) == BATCHES * BATCH
    codes = Counter(code for _, code in told)
    assert codes["queue_full"] > 0
    for text, code in told:
        if code in NOT_CARRIED_OUT:
            assert said[text] == 0, f"{text} was answered {code}, and happened"
        else:
            assert code == "outcome_unknown"
            assert said[text] <= 1


async def ask(
    session: aiohttp.ClientSession, service: ServiceProcess, number: int
) -> list[tuple[str, str]]:
    """Sends a batch of messages; what each says, and the code that it was answered with."""
    said = [f"batch {number}, message {index}" for index in range(BATCH)]
    commands = [
        {"method": "POST", "path": "/api/v1/messages", "body": {"from_agent": "crowd", "message": text}}
        for text in said
    ]
    async with session.post(f"{service.url}/api/v1/batch", json={"commands": commands}) as response:
        results: list[dict[str, Any]] = json.loads(await response.read())["results"]
    return [(text, result["body"]["code"]) for text, result in zip(said, results, strict=True)]


async def listen(session: aiohttp.ClientSession, service: ServiceProcess) -> None:
    """Reads an event stream until it ends."""
    async with session.get(f"{service.url}/api/v1/events/stream") as response:
        assert response.status == 200
        async for _ in response.content:
            pass


async def has(service: ServiceProcess, metric: str, value: float) -> bool:
    return await service.metric(metric) >= value

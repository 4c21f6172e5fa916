"""`squad replay` during load on the service: nothing is lost, and readers see no gap."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from projections.comparison import compare
from tests.support.command import squad_output
from tests.support.components import SCHEMA, connected
from tests.support.load import Load
from tests.support.process import INSTALLED, squad_up
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    import aiohttp

    from eventstore.connection import Connection
    from tests.support.process import ServiceProcess

REPLAYS = 3
MESSAGES = 50


async def test_replays_under_load_lose_nothing_and_readers_see_no_gap(
    database: str, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with (
        squad_up(dsn=database, program=INSTALLED, SQUAD_DAILY_TOKENS="1000000") as service,
        connected(database) as connection,
        connected(database) as reader_connection,
    ):
        load, reader = Load([service]), Reader(http, service, reader_connection)
        await reader.prepare()
        reading = asyncio.create_task(reader.read())
        async with load.running():
            await load.wait_for_answers()
            for number in range(REPLAYS):
                # A change for the replay to undo, in a column that neither the load nor the reader reads.
                await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
                rounds = reader.rounds
                printed = await squad_output("replay", "--dsn", database, cwd=tmp_path)
                assert "into the tables of agents, messages, operations, budgets" in printed
                await load.wait_for_answers(50)
                await eventually(lambda rounds=rounds: reader.rounds > rounds + 3)  # type: ignore[misc]
                assert not reading.done(), f"the reader failed during replay {number}"
        reader.done.set()
        await reading
        await load.assert_log_matches_answers(database)
        assert "WARNING" not in service.output().upper()
    assert await compare(database, SCHEMA) == []


class Reader:
    """Writes and reads all the time; fails if it does not see everything that it has seen before."""

    def __init__(
        self, http: aiohttp.ClientSession, service: ServiceProcess, connection: Connection
    ) -> None:
        self.done = asyncio.Event()
        self.rounds = 0
        self._http = http
        self._connection = connection
        self._url = f"{service.url}/api/v1"
        self._written: list[str] = []

    async def prepare(self) -> None:
        """Send many messages and make a lasting claim, so that a gap would show."""
        for _ in range(MESSAGES):
            await self._write()
        claim = {"agent": "reader", "action": "read", "resources": {"book": "1"}, "ttl_seconds": 3600}
        await self._post("operations", claim)

    async def read(self) -> None:
        """Write and read until `done` is set."""
        positions: dict[str, int] = {}
        while not self.done.is_set():
            position = await self._write()
            # Its own write is readable; 504 would mean that the tables did not advance for 5 seconds.
            page = await self._get(f"messages?from_agent=reader&limit=1000&min_position={position}")
            assert [item["id"] for item in page["items"]] == self._written
            assert (await self._get("agents/reader"))["status"] == "active"
            assert len((await self._get("operations?state=active"))["items"]) >= 1
            cursor = await self._connection.execute("SELECT name, position FROM projections")
            for name, reached in await cursor.fetchall():
                assert reached >= positions.get(name, 0), f"the position of {name} went back"
                positions[name] = reached
            self.rounds += 1

    async def _write(self) -> int:
        answer = await self._post("messages", {"from_agent": "reader", "message": str(len(self._written))})
        self._written.append(answer["id"])
        return int(answer["position"])

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        async with self._http.post(f"{self._url}/{path}", json=body) as response:
            answer = orjson.loads(await response.read())
            assert response.status == 201, answer
            return answer

    async def _get(self, path: str) -> Any:
        async with self._http.get(f"{self._url}/{path}") as response:
            answer = orjson.loads(await response.read())
            assert response.status == 200, answer
            return answer

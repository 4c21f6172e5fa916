"""`squad replay` beside a service that works: nothing is lost, and readers see no gap."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from projections.comparison import compare
from tests.support.command import finished
from tests.support.load import Load
from tests.support.parts import SCHEMA, connected
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
        connected(database) as of_the_reader,
    ):
        load, reader = Load([service]), Reader(http, service, of_the_reader)
        await reader.begin()
        reading = asyncio.create_task(reader.read())
        async with load.running():
            await load.more()
            for number in range(REPLAYS):
                # A column that no answer of the load and no reader depends on, so that there is work to do.
                await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
                looks = reader.looks
                printed = await finished("replay", "--dsn", database, cwd=tmp_path)
                assert "into the tables of agents, messages, operations, budgets" in printed
                await load.more(50)
                await eventually(lambda looks=looks: reader.looks > looks + 3)  # type: ignore[misc]
                assert not reading.done(), f"the reader ended at the replay number {number}"
        reader.enough.set()
        await reading
        await load.assert_kept(database)
        assert "WARNING" not in service.story().upper()
    assert await compare(database, SCHEMA) == []


class Reader:
    """Writes now and then, reads all the time, and fails where it does not see what it has seen before."""

    def __init__(
        self, http: aiohttp.ClientSession, service: ServiceProcess, connection: Connection
    ) -> None:
        self.enough = asyncio.Event()
        self.looks = 0
        self._http = http
        self._connection = connection
        self._url = f"{service.url}/api/v1"
        self._written: list[str] = []

    async def begin(self) -> None:
        """Says so much, and claims something for good, that a gap would show."""
        for _ in range(MESSAGES):
            await self._write()
        claim = {"agent": "reader", "action": "read", "resources": {"book": "1"}, "ttl_seconds": 3600}
        await self._post("operations", claim)

    async def read(self) -> None:
        """Reads until it is enough."""
        covered: dict[str, int] = {}
        while not self.enough.is_set():
            position = await self._write()
            # What it wrote it can read at once: 504 would mean that the tables stood still for 5 seconds.
            page = await self._get(f"messages?from_agent=reader&limit=1000&min_position={position}")
            assert [item["id"] for item in page["items"]] == self._written
            assert (await self._get("agents/reader"))["status"] == "active"
            assert len((await self._get("operations?state=active"))["items"]) >= 1
            cursor = await self._connection.execute("SELECT name, position FROM projections")
            for name, reached in await cursor.fetchall():
                assert reached >= covered.get(name, 0), f"{name} went back"
                covered[name] = reached
            self.looks += 1

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

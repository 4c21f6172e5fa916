"""A squad in use for a while: `python -m benchmarks.soak [--minutes N] [--per-second N]`.

Agents work on e-mails at a steady rate, while event streams come and go and lists are read. What they
begin, they end, so a service that keeps only what is active in memory needs no more of it after an hour
than after a few minutes. A row of figures is printed twenty times during the run, and at the end how fast
memory grew in its second half, and whether the log and the tables hold (`squad verify`).
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from itertools import count
from random import Random
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import click
import psutil
import uvloop

from benchmarks import stage
from benchmarks.harness import percentile
from eventstore.connection import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENTS = 16
STREAMS = 8
ROWS = 20
REQUESTS_PER_EMAIL = 9
LARGE_TEXT_CHARACTERS = 100_000
"""One e-mail in fifty has a body of this size."""

_STREAM_SECONDS = 10.0
_MEGABYTE = 1024 * 1024
_COLUMNS = "{:>8} {:>10} {:>10} {:>8} {:>8} {:>11} {:>5} {:>8} {:>11} {:>9}"
_HEADINGS = (
    "seconds", "requests", "events", "p50 ms", "p99 ms", "resident MB", "files", "threads", "Postgres MB",
    "disk MB",
)  # fmt: skip


class Resident(NamedTuple):
    """The service's resident memory at a time."""

    seconds: float
    megabytes: float


class Unexpected(Exception):
    """An answer that this load must not get."""


class Squad:
    """Agents that work on e-mails over HTTP, and readers.

    Args:
        session: to send requests with.
        url: of the service.
        per_second: how many requests all agents send together.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, per_second: float) -> None:
        self.requests = 0
        self.took_ms: list[float] = []
        """The time that each request took since the list was last emptied."""
        self._session = session
        self._url = url
        self._seconds_per_email = REQUESTS_PER_EMAIL * AGENTS / per_second
        self._numbers = count()
        self._random = Random(1)

    async def agent(self, name: str) -> None:
        """Work on one e-mail after another until cancelled."""
        await self._send("PUT", f"/agents/{name}", {"role": "answers e-mails"})
        next_at = monotonic() + self._random.uniform(0, self._seconds_per_email)
        while True:
            await asyncio.sleep(max(0.0, next_at - monotonic()))
            next_at = max(next_at + self._seconds_per_email, monotonic())
            await self._answer_email(name, next(self._numbers))

    async def _answer_email(self, name: str, number: int) -> None:
        text = "x" * (200 if number % 50 else LARGE_TEXT_CHARACTERS)
        email = await self._send("POST", "/emails", _email(number, text))
        claim = await self._send(
            "POST",
            "/operations",
            {"agent": name, "action": "respond", "resources": {"emailId": email["id"]}},
        )
        tokens = await self._send("POST", "/budget/reservations", {"agent": name, "tokens": 500})
        await self._send("POST", "/messages", {"from_agent": name, "message": text[:5_000]})
        await self._send("PATCH", f"/emails/{email['id']}", {"status": "draft_created"})
        await self._send("GET", self._random.choice(("/budget", "/emails", "/operations", "/messages")))
        await self._send("POST", f"/budget/reservations/{tokens['id']}/settle", {"tokens_used": 450})
        await self._send("PATCH", f"/emails/{email['id']}", {"status": "sent"})
        await self._send("POST", f"/operations/{claim['id']}/finish", {"outcome": "succeeded"})

    async def reader(self) -> None:
        """Read the event stream, each time for some seconds, until cancelled."""
        while True:
            async with self._session.get(f"{self._url}/api/v1/events/stream") as answer:
                if answer.status != 200:
                    raise Unexpected(f"the event stream was answered {answer.status}")
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._random.uniform(0, 2 * _STREAM_SECONDS)):
                        async for _ in answer.content.iter_any():
                            pass

    async def _send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        began = perf_counter()
        async with self._session.request(method, f"{self._url}/api/v1{path}", json=body) as answer:
            content = await answer.read()
            if answer.status >= 300:
                raise Unexpected(f"{method} {path} was answered {answer.status}: {content[:500]!r}")
            self.took_ms.append((perf_counter() - began) * 1_000)
            self.requests += 1
            found: dict[str, Any] = await answer.json()
            return found


async def soak(minutes: float, per_second: float) -> bool:
    """Run a squad, and print the figures; return whether the log and the tables hold."""
    async with stage.postgres() as dsn, stage.service(dsn, SQUAD_MAX_STREAMS_PER_KEY="100") as server:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
            squad = Squad(session, server.url, per_second)
            tasks = [group.create_task(squad.agent(f"agent-{number:02}")) for number in range(AGENTS)]
            tasks += [group.create_task(squad.reader()) for _ in range(STREAMS)]
            resident = await _watch(dsn, squad, server.process, minutes * 60)
            for task in tasks:
                task.cancel()
        growth = _growth_per_hour(resident[len(resident) // 2 :])
        click.echo(f"\nresident memory in the second half: {growth:+,.0f} MB an hour")
        verify = await asyncio.create_subprocess_exec(stage.SQUAD, "verify", f"--dsn={dsn}")
        return await verify.wait() == 0


async def _watch(dsn: str, squad: Squad, process: psutil.Process, seconds: float) -> list[Resident]:
    """Print the rows; return the memory, measured ten times as often."""
    click.echo(_COLUMNS.format(*_HEADINGS))
    began, found = monotonic(), list[Resident]()
    for number in range(1, 10 * ROWS + 1):
        await asyncio.sleep(max(0.0, began + number * seconds / (10 * ROWS) - monotonic()))
        megabytes = process.memory_info().rss / _MEGABYTE
        found.append(Resident(monotonic() - began, megabytes))
        if number % 10 == 0:
            took, squad.took_ms = sorted(squad.took_ms) or [0.0], []
            events, disk, backends = await _database(dsn)
            click.echo(
                _COLUMNS.format(
                    f"{found[-1].seconds:,.0f}",
                    f"{squad.requests:,}",
                    f"{events:,}",
                    f"{percentile(took, 50):.1f}",
                    f"{percentile(took, 99):.1f}",
                    f"{megabytes:.0f}",
                    process.num_fds(),
                    process.num_threads(),
                    f"{sum(_unshared_megabytes(backends)):.0f}",
                    f"{disk / _MEGABYTE:,.0f}",
                )
            )
    return found


async def _database(dsn: str) -> tuple[int, int, list[int]]:
    """Return the number of events, the size of the database in bytes, and its server processes."""
    async with await connect(dsn, "squad", name="squad benchmark") as connection:
        cursor = await connection.execute(
            "SELECT (SELECT max(position) FROM events), pg_database_size(current_database()),"
            " (SELECT array_agg(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid())"
        )
        row = await cursor.fetchone()
        assert row is not None
        return row[0], row[1], row[2]


def _email(number: int, text: str) -> dict[str, Any]:
    return {
        "gmail_message_id": f"message-{number}",
        "from_email": f"customer-{number}@example.com",
        "subject": "An offer",
        "category": "quotes",
        "payload": {"text": text},
    }


def _unshared_megabytes(processes: list[int]) -> Iterator[float]:
    for pid in processes:
        with suppress(psutil.Error):
            memory = psutil.Process(pid).memory_info()
            yield (memory.rss - getattr(memory, "shared", 0)) / _MEGABYTE


def _growth_per_hour(samples: list[Resident]) -> float:
    """Return the slope of the line of least squares, in megabytes an hour."""
    middle = sum(sample.seconds for sample in samples) / len(samples)
    spread = sum((sample.seconds - middle) ** 2 for sample in samples)
    return 3_600 * sum((sample.seconds - middle) * sample.megabytes for sample in samples) / spread


@click.command()
@click.option(
    "--minutes", type=click.FloatRange(0.1, 24 * 60), default=20.0, help="How long it runs.  [20]"
)
@click.option(
    "--per-second", type=click.FloatRange(1, 1_000), default=100.0, help="Requests a second.  [100]"
)
def main(*, minutes: float, per_second: float) -> None:
    """Use a squad for a while, and print what that costs in memory, files and disk space."""
    sys.exit(0 if uvloop.run(soak(minutes, per_second)) else 1)


if __name__ == "__main__":
    main()

"""`squad bench` measures in a schema of its own and leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from eventstore.errors import EventStoreError
from service import selftest
from service.cli import cli
from service.selftest.temporary_schema import PREFIX, own_schema
from tests.support.components import connected

if TYPE_CHECKING:
    from eventstore.connection import Connection

SECONDS = 1.5


async def temporary_schemas(connection: Connection) -> list[str]:
    cursor = await connection.execute(
        "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)", (PREFIX,)
    )
    return [name for (name,) in await cursor.fetchall()]


async def test_bench_measures_every_figure_and_drops_its_schema(empty_database: str) -> None:
    reported: list[str] = []
    figures = await selftest.run(empty_database, SECONDS, reported.append)
    assert len(reported) == 7
    async with connected(empty_database) as connection:
        row = await (await connection.execute("SHOW fsync")).fetchone()
        assert figures.durable == (row == ("on",))
    for latency in (figures.round_trip, figures.commit, figures.notification, figures.visible):
        assert 0 < latency.p50_ms <= latency.p99_ms
    assert all(rate.per_second > 0 and rate.cpu > 0 for rate in figures.commands.values())
    async with connected(empty_database) as connection:
        assert await temporary_schemas(connection) == []


async def test_schema_is_dropped_when_the_bench_is_cancelled(empty_database: str) -> None:
    started = asyncio.Event()

    def report(what: str) -> None:
        if what.startswith("commands"):
            started.set()

    running = asyncio.create_task(selftest.run(empty_database, 60, report))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with connected(empty_database) as connection:
        assert await temporary_schemas(connection) == []


async def test_schema_left_by_a_killed_bench_is_dropped_and_others_are_kept(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        await connection.execute(f"CREATE SCHEMA {PREFIX}0123456789ab".encode())
        await connection.execute(f"CREATE SCHEMA {PREFIX}of_somebody_else".encode())
        async with own_schema(empty_database) as first:
            async with own_schema(empty_database) as second:
                names = {first, second, f"{PREFIX}of_somebody_else"}
                assert set(await temporary_schemas(connection)) == names
            assert set(await temporary_schemas(connection)) == names - {second}


async def test_missing_privilege_to_create_a_schema_is_explained(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute(b"CREATE ROLE bench_nobody")
        try:
            dsn = make_conninfo(database, options="-c role=bench_nobody")
            with pytest.raises(EventStoreError, match="GRANT CREATE ON DATABASE"):
                await selftest.run(dsn, SECONDS)
        finally:
            await connection.execute(b"DROP ROLE bench_nobody")


def test_command_prints_the_figures_and_what_to_expect(empty_database: str) -> None:
    args = ["bench", "--dsn", empty_database, "--seconds", "2"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    assert "durable commit" in result.stdout
    assert "Expect about" in result.stdout
    figures = orjson.loads(CliRunner().invoke(cli, [*args, "--json"]).stdout)
    assert figures["commands"]["512"]["per_second"] > 0
    assert figures["judgement"]

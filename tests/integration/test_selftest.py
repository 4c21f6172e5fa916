"""`squad bench`: it measures in a schema of its own, and leaves nothing behind."""

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
from tests.support.parts import connected

if TYPE_CHECKING:
    from eventstore.connection import Connection

SECONDS = 1.5


async def left_over(connection: Connection) -> list[str]:
    cursor = await connection.execute(
        "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)", (PREFIX,)
    )
    return [name for (name,) in await cursor.fetchall()]


async def test_every_figure_is_measured_and_the_schema_is_gone(empty_database: str) -> None:
    told: list[str] = []
    figures = await selftest.run(empty_database, SECONDS, told.append)
    assert len(told) == 7
    async with connected(empty_database) as connection:
        row = await (await connection.execute("SHOW fsync")).fetchone()
        assert figures.durable == (row == ("on",))
    for latency in (figures.round_trip, figures.commit, figures.notification, figures.visible):
        assert 0 < latency.p50_ms <= latency.p99_ms
    assert all(rate.per_second > 0 and rate.cpu > 0 for rate in figures.commands.values())
    async with connected(empty_database) as connection:
        assert await left_over(connection) == []


async def test_the_schema_is_gone_where_the_test_is_broken_off(empty_database: str) -> None:
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
        assert await left_over(connection) == []


async def test_what_a_killed_one_left_is_removed_and_what_another_uses_is_not(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        await connection.execute(f"CREATE SCHEMA {PREFIX}0123456789ab".encode())
        await connection.execute(f"CREATE SCHEMA {PREFIX}of_somebody_else".encode())
        async with own_schema(empty_database) as first:
            async with own_schema(empty_database) as second:
                names = {first, second, f"{PREFIX}of_somebody_else"}
                assert set(await left_over(connection)) == names
            assert set(await left_over(connection)) == names - {second}


async def test_a_role_that_may_make_no_schema_is_told_so(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute(b"CREATE ROLE bench_nobody")
        try:
            dsn = make_conninfo(database, options="-c role=bench_nobody")
            with pytest.raises(EventStoreError, match="GRANT CREATE ON DATABASE"):
                await selftest.run(dsn, SECONDS)
        finally:
            await connection.execute(b"DROP ROLE bench_nobody")


def test_the_command_prints_figures_and_what_they_mean(empty_database: str) -> None:
    asked = ["bench", "--dsn", empty_database, "--seconds", "2"]
    shown = CliRunner().invoke(cli, asked)
    assert shown.exit_code == 0, shown.output
    assert "durable commit" in shown.stdout
    assert "Expect about" in shown.stdout
    found = orjson.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    assert found["commands"]["512"]["per_second"] > 0
    assert found["judgement"]

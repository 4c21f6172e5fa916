"""Which database a command acts on, and which way it takes there."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import psycopg
import pytest

from eventstore.connection import connect
from eventstore.errors import NotConnected
from service.cli.target import Target, open_squad
from service.database import StartFailed, check_same_log, resolve_command_dsn
from service.settings import Settings
from tests.support.command import finished, squad
from tests.support.parts import SCHEMA, message, running_writer, submit
from tests.support.pooler import pooler
from tests.support.process import refused_start

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def _somewhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def other(postgres: PostgresServer, _template: str) -> AsyncIterator[str]:
    """Another squad's database."""
    with postgres.new_database(template=_template) as dsn:
        await _begin(dsn)
        yield dsn


async def _begin(dsn: str) -> None:
    async with running_writer(dsn) as writer:
        await submit(writer, message("hello"))


async def test_a_command_acts_on_the_database_that_it_names(
    database: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a machine where the service's own way for LISTEN is set."""
    await _begin(database)
    monkeypatch.setenv("SQUAD_DSN", other)
    monkeypatch.setenv("SQUAD_LISTEN_DSN", other)
    async with open_squad(Target(dsn=database)) as (connection, _, found):
        assert found == database
        row = await (await connection.execute("SELECT current_database()")).fetchone()
    assert row is not None
    assert f"dbname={row[0]}" in database


async def test_a_command_goes_around_a_pooler_where_it_knows_a_way(database: str) -> None:
    await _begin(database)
    async with pooler(database) as between:
        settings = Settings(dsn=between.dsn, listen_dsn=database, squad_schema=SCHEMA)
        assert await resolve_command_dsn(settings, between.dsn) == database
        nowhere = Settings(dsn=between.dsn, squad_schema=SCHEMA)
        assert await resolve_command_dsn(nowhere, between.dsn) == between.dsn


async def test_an_import_and_a_self_test_go_around_a_pooler_too(
    database: str, empty_database: str, tmp_path: Path
) -> None:
    await _begin(database)
    file = str(tmp_path / "log.jsonl")
    await finished("export", file, "--dsn", database, cwd=tmp_path)
    async with pooler(empty_database) as between:
        around = {"SQUAD_DSN": between.dsn, "SQUAD_LISTEN_DSN": empty_database}
        imported = await squad(tmp_path, "import", file, **around)
        assert imported.lines()[0].startswith("imported "), imported
        measured = await squad(tmp_path, "bench", "--seconds", "2", "--json", **around)
        assert json.loads(measured.lines()[0])["judgement"]


async def test_ways_to_one_log_are_as_good_as_one(database: str) -> None:
    settings = Settings(dsn=database, squad_schema=SCHEMA)
    await check_same_log(settings, database, database)
    await _begin(database)
    await check_same_log(settings, database, database)


async def test_a_way_to_another_log_is_refused(database: str, other: str) -> None:
    """Whether there is something in ours by now or not."""
    settings = Settings(dsn=database, squad_schema=SCHEMA)
    for _ in range(2):
        with pytest.raises(StartFailed, match="a different log"):
            await check_same_log(settings, database, other)
        with pytest.raises(StartFailed, match="a different log"):
            await check_same_log(settings, other, database)
        await _begin(database)


async def test_a_way_that_leads_nowhere_now_is_not_refused(database: str, unused_tcp_port: int) -> None:
    await _begin(database)
    settings = Settings(dsn=database, squad_schema=SCHEMA)
    await check_same_log(settings, database, f"host=127.0.0.1 port={unused_tcp_port} connect_timeout=1")


async def test_a_pooler_that_lets_in_and_does_not_serve_is_not_waited_for(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its server connections are in use; it would have us wait for two minutes."""
    monkeypatch.setattr("eventstore.connection.FIRST_QUERY_SECONDS", 0.5)
    async with (
        pooler(database, mode="session", size=1) as between,
        await psycopg.AsyncConnection.connect(between.dsn) as other,
    ):
        await other.execute("SELECT")
        async with asyncio.timeout(30):
            with pytest.raises(NotConnected, match="got no answer within"):
                await connect(between.dsn, SCHEMA, name="squad test")


async def test_each_server_that_was_tried_is_told_of_in_one_line(
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    """The last one may be a standby, and the reason with the first."""
    first, last = unused_tcp_port_factory(), unused_tcp_port_factory()
    with pytest.raises(NotConnected) as refused:
        await connect(f"host=127.0.0.1,127.0.0.1 port={first},{last}", SCHEMA, name="squad test")
    said = str(refused.value)
    assert said.count("127.0.0.1") == said.count("refused") == 2, said
    assert said.index(f"port {first} ") < said.index(f"port {last} "), said
    assert "\n" not in said


async def test_a_service_does_not_listen_to_another_log(database: str, other: str) -> None:
    await _begin(database)
    assert "leads to a different log" in await refused_start(dsn=database, SQUAD_LISTEN_DSN=other)

"""Which database a command uses, by which DSN it connects, and that all DSNs lead to the same log."""

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
from tests.support.command import squad, squad_output
from tests.support.components import SCHEMA, message, running_writer, submit
from tests.support.pooler import pooler
from tests.support.process import failed_start_output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def _empty_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def other(postgres: PostgresServer, _template: str) -> AsyncIterator[str]:
    """Another squad's database."""
    with postgres.new_database(template=_template) as dsn:
        await _record_events(dsn)
        yield dsn


async def _record_events(dsn: str) -> None:
    async with running_writer(dsn) as writer:
        await submit(writer, message("hello"))


async def test_command_uses_the_database_that_it_names(
    database: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the environment sets another database, and another DSN for LISTEN."""
    await _record_events(database)
    monkeypatch.setenv("SQUAD_DSN", other)
    monkeypatch.setenv("SQUAD_LISTEN_DSN", other)
    async with open_squad(Target(dsn=database)) as (connection, _, found):
        assert found == database
        row = await (await connection.execute("SELECT current_database()")).fetchone()
    assert row is not None
    assert f"dbname={row[0]}" in database


async def test_command_bypasses_a_pooler_when_it_has_a_direct_dsn(database: str) -> None:
    await _record_events(database)
    async with pooler(database) as proxy:
        settings = Settings(dsn=proxy.dsn, listen_dsn=database, squad_schema=SCHEMA)
        assert await resolve_command_dsn(settings, proxy.dsn) == database
        without_direct_dsn = Settings(dsn=proxy.dsn, squad_schema=SCHEMA)
        assert await resolve_command_dsn(without_direct_dsn, proxy.dsn) == proxy.dsn


async def test_import_and_bench_bypass_a_pooler(database: str, empty_database: str, tmp_path: Path) -> None:
    await _record_events(database)
    file = str(tmp_path / "log.jsonl")
    await squad_output("export", file, "--dsn", database, cwd=tmp_path)
    async with pooler(empty_database) as proxy:
        environment = {"SQUAD_DSN": proxy.dsn, "SQUAD_LISTEN_DSN": empty_database}
        imported = await squad(tmp_path, "import", file, **environment)
        assert imported.lines()[0].startswith("imported "), imported
        measured = await squad(tmp_path, "bench", "--seconds", "2", "--json", **environment)
        assert json.loads(measured.lines()[0])["judgement"]


async def test_two_dsns_of_the_same_log_are_accepted(database: str) -> None:
    settings = Settings(dsn=database, squad_schema=SCHEMA)
    await check_same_log(settings, database, database)
    await _record_events(database)
    await check_same_log(settings, database, database)


async def test_dsn_of_another_log_is_refused(database: str, other: str) -> None:
    """Whether or not our own log is empty."""
    settings = Settings(dsn=database, squad_schema=SCHEMA)
    for _ in range(2):
        with pytest.raises(StartFailed, match="a different log"):
            await check_same_log(settings, database, other)
        with pytest.raises(StartFailed, match="a different log"):
            await check_same_log(settings, other, database)
        await _record_events(database)


async def test_unreachable_dsn_is_not_refused(database: str, unused_tcp_port: int) -> None:
    await _record_events(database)
    settings = Settings(dsn=database, squad_schema=SCHEMA)
    await check_same_log(settings, database, f"host=127.0.0.1 port={unused_tcp_port} connect_timeout=1")


async def test_connecting_gives_up_when_a_pooler_accepts_but_does_not_serve(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its server connections are in use, and it would make a client wait for two minutes."""
    monkeypatch.setattr("eventstore.connection.FIRST_QUERY_SECONDS", 0.5)
    async with (
        pooler(database, mode="session", size=1) as proxy,
        await psycopg.AsyncConnection.connect(proxy.dsn) as other,
    ):
        await other.execute("SELECT")
        async with asyncio.timeout(30):
            with pytest.raises(NotConnected, match="got no answer within"):
                await connect(proxy.dsn, SCHEMA, name="squad test")


async def test_every_server_that_was_tried_is_named_in_one_line(
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    """The last one may be a standby, and the cause at the first."""
    first, last = unused_tcp_port_factory(), unused_tcp_port_factory()
    with pytest.raises(NotConnected) as refused:
        await connect(f"host=127.0.0.1,127.0.0.1 port={first},{last}", SCHEMA, name="squad test")
    error = str(refused.value)
    assert error.count("127.0.0.1") == error.count("refused") == 2, error
    assert error.index(f"port {first} ") < error.index(f"port {last} "), error
    assert "\n" not in error


async def test_service_refuses_to_listen_to_another_log(database: str, other: str) -> None:
    await _record_events(database)
    assert "leads to a different log" in await failed_start_output(dsn=database, SQUAD_LISTEN_DSN=other)

"""How `squad status` says to query the embedded Postgres."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import psycopg

from tests.support.command import squad_output
from tests.support.process import squad_up

if TYPE_CHECKING:
    from pathlib import Path


async def test_status_prints_a_connection_that_works_when_the_postgres_is_embedded(tmp_path: Path) -> None:
    data = tmp_path / "it's a folder"
    async with squad_up(data=data):
        status = await squad_output("status", "--data", str(data), cwd=tmp_path)
        program, connection_string = shlex.split(status.splitlines()[-1])
        async with await psycopg.AsyncConnection.connect(connection_string) as connection:
            cursor = await connection.execute("SELECT type FROM events ORDER BY position LIMIT 1")
            first = await cursor.fetchone()
    assert program == "psql"
    assert first == ("policy_set",)


async def test_status_prints_no_connection_when_a_database_is_given(database: str, tmp_path: Path) -> None:
    async with squad_up(dsn=database):
        assert "psql" not in await squad_output("status", "--dsn", database, cwd=tmp_path)

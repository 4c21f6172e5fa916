"""Helpers that fill the read tables and query them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from eventstore.listener import Hints
from projections.projector import Projector
from tests.support.components import SCHEMA, running, running_writer
from tests.support.random_history import submit_history_with_jobs
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection


async def project(dsn: str, schema: str = SCHEMA) -> None:
    """Bring the tables up to the head of the log."""
    async with running(Projector(dsn, schema, Hints()).run()):
        await eventually(partial(projected_to_head, dsn, schema), within_seconds=60)


async def fill_all_tables(dsn: str, seed: int) -> None:
    """Record a history that leaves rows in every table, in batches of several commands."""
    async with running_writer(dsn) as writer:
        await submit_history_with_jobs(writer, seed, 300, at_once=20)
    await project(dsn)


async def projection_states(
    connection: Connection,
) -> dict[str, tuple[int, int, int | None, str | None, int]]:
    """Position, fold version, failed position, error and generation, by projection."""
    cursor = await connection.execute(
        "SELECT name, position, fold_version, failed_position, error, generation FROM projections"
    )
    return {name: tuple(state) for name, *state in await cursor.fetchall()}


async def generation(connection: Connection) -> int:
    """The generation of the tables."""
    return int(await fetch_value(connection, "SELECT max(generation) FROM projections"))


async def fetch_value(connection: Connection, query: str) -> Any:
    """The single value that a query returns."""
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]

"""Projectors that lose their connection, at each statement in turn and at random under load."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from eventstore import connection as connections
from eventstore import log
from eventstore.errors import StoreBusy
from eventstore.listener import Hints
from projections import PROJECTIONS, projector
from projections.folding import PageFolder
from projections.projector import Projector
from tests.support.components import (
    connected,
    running,
    running_listener,
    running_writer,
    terminate_backends,
)
from tests.support.random_history import RandomHistory
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection

pytestmark = pytest.mark.faults

TERMINATIONS = 8


class Cutter:
    """Cut the first connection of a projector at its n-th statement, and prevent a second connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_statement: int) -> None:
        self.reconnecting = asyncio.Event()
        self._remaining = at_statement
        self._connection: Connection | None = None
        execute = psycopg.AsyncCursor.execute

        async def cutting(cursor: psycopg.AsyncCursor[Any], *args: Any, **more: Any) -> Any:
            if cursor.connection is self._connection:
                self._remaining -= 1
                if self._remaining == 0:
                    connections.shut_down_socket(cursor.connection)
            return await execute(cursor, *args, **more)

        monkeypatch.setattr(psycopg.AsyncCursor, "execute", cutting)
        monkeypatch.setattr(projector, "connect", self._connect)

    @property
    def has_cut(self) -> bool:
        return self._remaining <= 0

    async def _connect(self, *args: Any, **more: Any) -> Connection:
        if self._connection is not None:
            self.reconnecting.set()
            await asyncio.Event().wait()
        self._connection = await connections.connect(*args, **more)
        return self._connection


async def _truncate_tables(connection: Connection) -> None:
    names = [table.name for projection in PROJECTIONS for table in projection.tables]
    await connection.execute(f"TRUNCATE {', '.join(names)}".encode())
    await connection.execute("DELETE FROM projections")


async def test_connection_loss_at_any_statement_leaves_rows_and_position_consistent(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=4).submit_commands(writer, 80)
    monkeypatch.setattr(log, "PAGE_EVENTS", 12)
    monkeypatch.setattr(projector, "_BACKOFF_SECONDS", (0.0, 0.0))
    cuts = 0
    async with connected(database) as connection:
        for statement in count(1):
            await _truncate_tables(connection)
            with monkeypatch.context() as patch:
                cutter = Cutter(patch, statement)
                async with running(Projector(database, "squad", Hints()).run()):
                    await eventually(partial(_is_finished, cutter, database))
            await assert_tables_equal_fold(database)
            if not cutter.has_cut:
                break
            cuts += 1
            if statement % 5 == 0:
                async with running(Projector(database, "squad", Hints()).run()):
                    await eventually(partial(projected_to_head, database))
                await assert_tables_equal_fold(database)
    assert cuts > 30


async def _is_finished(cutter: Cutter, dsn: str) -> bool:
    return cutter.reconnecting.is_set() or await projected_to_head(dsn)


async def test_projectors_that_lose_their_backends_under_load_reach_the_head(database: str) -> None:
    random = Random(5)
    done = asyncio.Event()

    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as writer,
        connected(database) as connection,
        running(*(Projector(database, "squad", listener.events).run() for _ in range(2))),
    ):
        commands = asyncio.gather(*(RandomHistory(seed).submit_until(done, writer) for seed in range(6)))
        for _ in range(TERMINATIONS):
            # At an arbitrary moment, on purpose.
            await asyncio.wait([commands], timeout=random.uniform(0.0, 0.1))
            await eventually(lambda: terminate_backends(connection, "squad projector"))
            await assert_tables_equal_fold(database)
        done.set()
        await commands
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 50
    await assert_log_is_sound(database)


async def test_standby_takes_over_when_the_active_projector_loses_its_connection(database: str) -> None:
    projectors = [Projector(database, "squad", Hints()) for _ in range(2)]
    async with running(*(each.run() for each in projectors)), connected(database) as connection:
        await eventually(lambda: any(each.active for each in projectors))
        (active,) = [each for each in projectors if each.active]
        (standby,) = [each for each in projectors if not each.active]
        cursor = await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
            " AND classid = 'projections'::regclass::oid"
        )
        assert len(await cursor.fetchall()) == 1
        # Either of them may take over, but exactly one becomes active.
        await eventually(lambda: active.active != standby.active)


async def test_two_active_projectors_cause_no_inconsistency(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the lock is lost silently, so that each one believes it is the active one."""
    monkeypatch.setattr(projector, "_TRY_LOCK", "SELECT true")
    monkeypatch.setattr(projector, "_BACKOFF_SECONDS", (0.0, 0.0))
    projectors = [Projector(database, "squad", Hints()) for _ in range(2)]
    overtaken = Counter[str]()
    advance = PageFolder.advance

    async def counting(*args: Any) -> None:
        try:
            await advance(*args)
        except StoreBusy:
            overtaken["times"] += 1
            raise

    monkeypatch.setattr(PageFolder, "advance", counting)
    done = asyncio.Event()

    async with (
        running_writer(database) as writer,
        running(*(each.run() for each in projectors)),
    ):
        await eventually(lambda: all(each.active for each in projectors))
        commands = asyncio.gather(*(RandomHistory(seed).submit_until(done, writer) for seed in range(6)))
        await eventually(lambda: overtaken["times"] >= 3)
        done.set()
        await commands
        await eventually(partial(projected_to_head, database))
        # The one that was overtaken starts over, and neither is stuck.
        await eventually(lambda: all(each.active for each in projectors))
    assert await assert_tables_equal_fold(database) > 50
    await assert_log_is_sound(database)

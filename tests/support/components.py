"""Context managers that run parts of a service, and helpers for their commands, connections and locks."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from eventstore.connection import connect
from eventstore.listener import Hints, Listener
from service import commands as do
from service.clock import DatabaseClock
from service.requests import Answer, Request
from service.writing.writer import Writer
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from eventstore.connection import Connection
    from eventstore.keys import Keyring
    from service.commands import AnyCommand
    from service.requests import Outcome

SCHEMA = "squad"


@contextlib.asynccontextmanager
async def running(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines that must not end by themselves; one that ends or raises fails the test."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
        for task in tasks:
            assert not task.done(), f"{task.get_coro()} ended by itself"
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, asyncio.CancelledError), f"a task ended with {outcome!r}"


@contextlib.asynccontextmanager
async def running_writer(
    dsn: str,
    schema: str = SCHEMA,
    *,
    hints: Hints | None = None,
    clock: DatabaseClock | None = None,
    policy: do.SetPolicy | None = None,
    keyring: Keyring | None = None,
    encrypt: bool | None = None,
) -> AsyncIterator[Writer]:
    """A writer that is ready, in a squad with a policy. It encrypts if the environment says so."""
    writer = Writer(
        dsn,
        schema,
        clock or DatabaseClock(),
        hints or Hints(),
        keyring=keyring,
        encrypt=encryption_requested() if encrypt is None else encrypt,
    )
    async with running(writer.run()):
        await submit(writer, policy or do.SetPolicy(daily_tokens=1_000_000_000))
        yield writer


def encryption_requested() -> bool:
    """Whether the environment asks for encrypted payloads."""
    return os.environ.get("SQUAD_ENCRYPT_PAYLOADS") == "true"


@contextlib.asynccontextmanager
async def running_listener(dsn: str, schema: str = SCHEMA) -> AsyncIterator[Listener]:
    """A listener that has received its own heartbeat."""
    listener = Listener(dsn, schema)
    async with running(listener.run()):
        await eventually(lambda: listener.hearing)
        yield listener


async def submit(
    writer: Writer,
    command: AnyCommand,
    *,
    key: str | None = None,
    fingerprint: str = "",
    timeout_seconds: float = 20.0,
) -> Outcome:
    """Submit a command as the API does."""
    request = Request(command, "agent:test", "test", key, fingerprint, render if key else None)
    return await writer.submit(request, timeout_seconds)


def render(outcome: Outcome) -> Answer:
    """The answer that is stored under an idempotency key in these tests."""
    body = {"id": outcome.reply.get("id"), "position": outcome.position}
    return Answer(409 if outcome.refusal else 201, body)


def message(text: str, *, agent: str = "alice") -> do.SendMessage:
    return do.SendMessage(from_agent=agent, message=text)


@contextlib.asynccontextmanager
async def connected(dsn: str, schema: str = SCHEMA) -> AsyncIterator[Connection]:
    """A connection to a squad's database."""
    async with await connect(dsn, schema, name="squad test") as connection:
        yield connection


async def backend_pids(connection: Connection, name: str) -> list[int]:
    """The pids of this database's backends with this application name."""
    cursor = await connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
        (name,),
    )
    return [pid for (pid,) in await cursor.fetchall()]


async def terminate_backends(connection: Connection, name: str) -> int:
    """Terminate the backends whose application name is LIKE this, except our own; return their number."""
    cursor = await connection.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE %s AND pid <> pg_backend_pid()",
        (name,),
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


_LOCKS = """
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND classid = 'events'::regclass::oid
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def lock_is_free(connection: Connection) -> bool:
    """Whether no session holds the log's lock or waits for it."""
    row = await (await connection.execute(f"SELECT NOT EXISTS ({_LOCKS})")).fetchone()
    return bool(row and row[0])


async def lock_is_held(connection: Connection) -> bool:
    """Whether a session holds the log's lock or waits for it."""
    return not await lock_is_free(connection)


async def lock_is_awaited(connection: Connection) -> bool:
    """Whether a session waits for the log's lock."""
    row = await (await connection.execute(f"SELECT EXISTS ({_LOCKS} AND NOT granted)")).fetchone()
    return bool(row and row[0])

"""Tampering with the log as a superuser who bypasses its triggers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from psycopg import sql

from eventstore.chain import hash_of
from eventstore.events import MessageAcknowledged
from eventstore.recorded import GENESIS_HASH
from tests.support.log import LogWriter, agent_registered, message_sent, whole_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import LiteralString

    from eventstore.connection import Connection

EVENTS = 12
_ALWAYS = (
    "events_are_immutable",
    "events_are_never_truncated",
    "events_are_not_updated",
    "events_destroy_keys",
)


async def append_sample_history(connection: Connection) -> None:
    """Append twelve events: a message at each even position, its acknowledgement at the next one."""
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"))
    for position in range(2, EVENTS, 2):
        message = message_sent(f"message {position}")
        await log_writer.append(message, idempotency_key=f"key-{position}")
        acknowledged = MessageAcknowledged(message_id=message.message_id, agent="alice")
        await log_writer.append(acknowledged, caused_by=position)
    await log_writer.append(message_sent("message 12"))


@asynccontextmanager
async def triggers_disabled(connection: Connection) -> AsyncIterator[None]:
    """Disable the log's triggers for the duration of the block, then restore them as they were."""
    await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
    yield
    await connection.execute("ALTER TABLE events ENABLE TRIGGER ALL")
    for trigger in _ALWAYS:
        await connection.execute(
            sql.SQL("ALTER TABLE events ENABLE ALWAYS TRIGGER {}").format(sql.Identifier(trigger))
        )


async def tamper(connection: Connection, *changes: LiteralString) -> None:
    """Run statements that the log's triggers would refuse."""
    async with triggers_disabled(connection):
        for change in changes:
            await connection.execute(change)


async def rehash_log(connection: Connection) -> None:
    """Recompute the hash of every event, so that the chain verifies again."""
    previous = GENESIS_HASH
    async with triggers_disabled(connection):
        for recorded in await whole_log(connection):
            previous = hash_of(previous, recorded)
            await connection.execute(
                "UPDATE events SET hash = %s WHERE position = %s", (previous, recorded.position)
            )


async def replace_history(connection: Connection, first_id: str | None = None) -> None:
    """Replace the whole log by a different one that is valid in itself."""
    await tamper(
        connection, "UPDATE events SET data = replace(data::text, 'message', 'massage')::json, actor = 'x'"
    )
    if first_id is not None:
        async with triggers_disabled(connection):
            await connection.execute("UPDATE events SET id = %s WHERE position = 1", (first_id,))
    await rehash_log(connection)

"""Which database to use, and how to connect to it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from eventstore import lookup, pooler
from eventstore.connection import connect
from eventstore.errors import EventStoreError, PoolerMisconfigured
from eventstore.queries import one_value
from service.background import background
from service.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.settings import Settings


class StartFailed(Exception):
    """The service cannot start; the message says why in one line."""


@asynccontextmanager
async def database(settings: Settings, embedded: EmbeddedPostgres | None = None) -> AsyncIterator[str]:
    """Yield the DSN of the squad's database: the one in the settings, otherwise the embedded one's.

    Args:
        settings: where to find it.
        embedded: the embedded Postgres in the settings' folder, if the caller needs access to it as well.
    """
    if settings.dsn:
        yield settings.dsn
        return
    embedded = embedded or EmbeddedPostgres(settings.data)
    try:
        dsn = await embedded.start()
        async with background(embedded.supervise()):
            yield dsn
    finally:
        await embedded.stop()


async def resolve_session_dsn(settings: Settings, dsn: str) -> str:
    """Return the DSN for connections that need a session, which a transaction pooler does not keep.

    Raises:
        StartFailed: there is none.
        PoolerMisconfigured: there is one, but the pooler on the other way lacks something.
    """
    missing = ""
    try:
        async with await connect(dsn, settings.squad_schema, name="squad service") as found:
            if not pooler.is_pooled(found):
                return dsn
    except PoolerMisconfigured as error:
        if settings.listen_dsn:
            raise
        missing = f"\n{error}"
    if settings.listen_dsn:
        return settings.listen_dsn
    raise StartFailed(
        "SQUAD_DSN leads through a pooler. LISTEN and the projector's lock need a session: set "
        f"SQUAD_LISTEN_DSN to a direct connection, or to one through a pooler that keeps sessions{missing}"
    )


async def resolve_command_dsn(settings: Settings, dsn: str) -> str:
    """Return the DSN for a command of the command line, which may need a session, and need not be fast.

    It is `dsn`, unless that leads through a pooler and the settings have another way to the same log.

    Raises:
        StartFailed: the other way leads to another log.
    """
    if settings.listen_dsn is None:
        return dsn
    try:
        way = await resolve_session_dsn(settings, dsn)
    except PoolerMisconfigured:
        way = settings.listen_dsn
    if way != dsn:
        await check_same_log(settings, dsn, way)
    return way


async def check_same_log(settings: Settings, dsn: str, other: str) -> None:
    """Check that two DSNs do not lead to different logs. One that cannot be reached now is accepted.

    Raises:
        StartFailed: they lead to different logs.
    """
    # A log that begins between the two reads would make them differ, so read both again.
    for _ in range(2):
        try:
            first, others = [await _first_event(settings, way) for way in (dsn, other)]
        except EventStoreError:
            return
        if first == others:
            return
    raise StartFailed(
        "SQUAD_LISTEN_DSN leads to a different log than the database: both must lead to the same one"
    )


async def _first_event(settings: Settings, dsn: str) -> str | None:
    """Return the id of a log's first event, which identifies the log; None without an event or a log."""
    async with await connect(dsn, settings.squad_schema, name="squad service") as connection:
        if await one_value(connection, "SELECT to_regclass('events') IS NULL"):
            return None
        first = await lookup.read_one(connection, 1)
        return first.id if first else None

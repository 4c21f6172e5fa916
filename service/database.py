"""Which database, and which way leads to it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from eventstore import lookup, pooler
from eventstore.asking import one_value
from eventstore.connection import connect
from eventstore.errors import EventStoreError, PoolerInTheWay
from service.background import background
from service.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.settings import Settings


class StartFailed(Exception):
    """The service cannot start; the message says why in one line."""


@asynccontextmanager
async def database(settings: Settings, embedded: EmbeddedPostgres | None = None) -> AsyncIterator[str]:
    """The squad's database: the one that the settings name, otherwise the embedded one.

    Args:
        settings: which.
        embedded: the one in the settings' folder, where somebody else needs a hold of it.
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


async def way_for_sessions(settings: Settings, dsn: str) -> str:
    """The DSN for whoever needs a session of its own, which a pooler may take apart.

    Raises:
        StartFailed: there is none.
        PoolerInTheWay: there is one, and the pooler on the other lacks something.
    """
    missing = ""
    try:
        async with await connect(dsn, settings.squad_schema, name="squad service") as found:
            if not pooler.stands_between(found):
                return dsn
    except PoolerInTheWay as error:
        if settings.listen_dsn:
            raise
        missing = f"\n{error}"
    if settings.listen_dsn:
        return settings.listen_dsn
    raise StartFailed(
        "SQUAD_DSN leads through a pooler. LISTEN and the projector's lock need a session: name a direct "
        f"connection, or one through a pooler that keeps sessions, as SQUAD_LISTEN_DSN{missing}"
    )


async def way_for_commands(settings: Settings, dsn: str) -> str:
    """The DSN for a command of the command line, which is in no hurry, and may need a session.

    It is the one that was named, unless a pooler stands there and another way to the same log is known.

    Raises:
        StartFailed: the other way leads to another log.
    """
    if settings.listen_dsn is None:
        return dsn
    try:
        way = await way_for_sessions(settings, dsn)
    except PoolerInTheWay:
        way = settings.listen_dsn
    if way != dsn:
        await check_same_log(settings, dsn, way)
    return way


async def check_same_log(settings: Settings, dsn: str, other: str) -> None:
    """Refuses two ways that lead to different logs. What cannot be looked at now, is not refused.

    Raises:
        StartFailed: they do.
    """
    # A log that begins between the two looks is not there at the first.
    for _ in range(2):
        try:
            first, others = [await _first_event(settings, way) for way in (dsn, other)]
        except EventStoreError:
            return
        if first == others:
            return
    raise StartFailed(
        "SQUAD_LISTEN_DSN leads to another log than the database that is named, and must be another way to"
        " the same one"
    )


async def _first_event(settings: Settings, dsn: str) -> str | None:
    """The id of a log's first event, which no other log has; None where there is no event or no log."""
    async with await connect(dsn, settings.squad_schema, name="squad service") as connection:
        if await one_value(connection, "SELECT to_regclass('events') IS NULL"):
            return None
        first = await lookup.read_one(connection, 1)
        return first.id if first else None

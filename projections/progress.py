"""The position of each projection when a projector starts, and which ones must be rebuilt."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventstore.queries import one_value
from eventstore.translation import translating
from projections.projection import Projection

if TYPE_CHECKING:
    from collections.abc import Collection

    from eventstore.connection import Connection

FAR_BEHIND_EVENTS = 20_000
"""A projection further behind the others than this, such as a new one, is rebuilt beside them: otherwise
they would stand still until it had caught up."""

_INSERT = """
    INSERT INTO projections (name, fold_version, generation)
    SELECT %s, %s, coalesce(max(generation), 1) FROM projections ON CONFLICT DO NOTHING
"""
_CLEAR_FAILURES = """
    UPDATE projections SET failed_position = NULL, error = NULL
    WHERE failed_position IS NOT NULL OR error IS NOT NULL
"""
# The lock of the active projector; a standby does not see the locks of its primary.
_IS_MAINTAINED = """
    SELECT pg_is_in_recovery() OR EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND granted AND objsubid = 2
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND classid = 'projections'::regclass::oid AND objid = 2)
"""
_READ_PROGRESS = "SELECT name, position, fold_version, generation FROM projections"


class Progress(NamedTuple):
    """The positions of the tables."""

    positions: dict[str, int]
    """The position of each projection; 0 if it must be rebuilt."""
    generation: int
    outdated: list[Projection]
    """Projections that must be rebuilt: other code folded them, or they are far behind the others."""


async def is_maintained(connection: Connection) -> bool:
    """Return whether some process keeps the read tables up to date; True if this server cannot know."""
    return bool(await one_value(connection, _IS_MAINTAINED))


async def read_progress(connection: Connection, projections: Collection[Projection]) -> Progress:
    """Insert new projections, clear old failures, and read the position of each projection.

    Raises:
        StoreUnavailable: the connection broke.
        StoreBusy: a replay holds the lock.
    """
    with translating():
        async with connection.transaction():
            for projection in projections:
                await connection.execute(_INSERT, (projection.name, projection.fold_version))
            await connection.execute(_CLEAR_FAILURES)
            rows = await (await connection.execute(_READ_PROGRESS)).fetchall()
    found = {name: (position, fold_version) for name, position, fold_version, _ in rows}
    positions = {projection.name: found[projection.name][0] for projection in projections}
    near = max(positions.values()) - FAR_BEHIND_EVENTS
    outdated = [
        projection
        for projection in projections
        if found[projection.name][1] != projection.fold_version or positions[projection.name] < near
    ]
    positions.update(dict.fromkeys((projection.name for projection in outdated), 0))
    return Progress(positions, max(generation for *_, generation in rows), outdated)

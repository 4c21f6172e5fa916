"""Where each projection is when a projector begins, and which of them it must have rebuilt."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventstore.translation import translating
from projections.projection import Projection

if TYPE_CHECKING:
    from collections.abc import Collection

    from eventstore.connection import Connection

FAR_BEHIND_EVENTS = 20_000
"""Whoever is further behind than the others, such as a new projection, is rebuilt beside them: they would
stand still until it had caught up."""

_ENTER = """
    INSERT INTO projections (name, fold_version, generation)
    SELECT %s, %s, coalesce(max(generation), 1) FROM projections ON CONFLICT DO NOTHING
"""
_FORGET_FAILURES = """
    UPDATE projections SET failed_position = NULL, error = NULL
    WHERE failed_position IS NOT NULL OR error IS NOT NULL
"""
_STANDING = "SELECT name, position, fold_version, generation FROM projections"


class Standing(NamedTuple):
    """Where the tables are."""

    positions: dict[str, int]
    """How far each projection is; 0 where it must be rebuilt."""
    generation: int
    outdated: list[Projection]
    """Those that must be rebuilt: other code folded them, or they are far behind the others."""


async def standing(connection: Connection, projections: Collection[Projection]) -> Standing:
    """Enters new projections, forgets old failures, and finds out where each projection is.

    Raises:
        StoreUnavailable: the connection broke.
        StoreBusy: a replay holds what is needed.
    """
    with translating():
        async with connection.transaction():
            for projection in projections:
                await connection.execute(_ENTER, (projection.name, projection.fold_version))
            await connection.execute(_FORGET_FAILURES)
            rows = await (await connection.execute(_STANDING)).fetchall()
    found = {name: (position, fold_version) for name, position, fold_version, _ in rows}
    positions = {projection.name: found[projection.name][0] for projection in projections}
    near = max(positions.values()) - FAR_BEHIND_EVENTS
    outdated = [
        projection
        for projection in projections
        if found[projection.name][1] != projection.fold_version or positions[projection.name] < near
    ]
    positions.update(dict.fromkeys((projection.name for projection in outdated), 0))
    return Standing(positions, max(generation for *_, generation in rows), outdated)

"""Tables that other code folded, or that are far behind, rebuilt in the background of the projector.

Their old rows stay until the new ones are complete; the other tables go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from eventstore.describing import describe
from eventstore.errors import StoreBusy, StoreUnavailable
from projections.rebuild import rebuild

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from projections.projection import Projection

TOLD_EVERY_SECONDS = 3.0
"""How often `projections` is told of a rebuild under way, so that nobody takes the tables for stuck."""

_BACKOFF_SECONDS = (0.2, 5.0)
_UNDER_WAY = "UPDATE projections SET updated_at = clock_timestamp() WHERE name = ANY (%s)"
_log = logging.getLogger(__name__)


class Outdated:
    """The projections that must be rebuilt, and the rebuild of them.

    A rebuild has connections of its own, and outlives the projector's: while it puts its rows in the place
    of the old ones, it can hold up the projector for longer than that one waits for anything.
    """

    def __init__(self, dsn: str, schema: str) -> None:
        self.projections: Sequence[Projection] = ()
        self._dsn = dsn
        self._schema = schema
        self._rebuilding: asyncio.Task[dict[str, Exception]] | None = None
        self._rebuilt: Sequence[Projection] = ()
        """Those that `_rebuilding` is about."""
        self._told_at = 0.0

    def __bool__(self) -> bool:
        return bool(self.projections)

    async def see_to(self, projections: Sequence[Projection]) -> None:
        """Has these rebuilt and no others. Where that is under way already, it goes on."""
        self.projections = projections
        if projections and self._is_under_way() and all(each in self._rebuilt for each in projections):
            return
        await self.stop()
        if projections:
            _log.info("rebuilding tables: %s", ", ".join(projection.name for projection in projections))
            self._rebuilt = projections
            self._rebuilding = asyncio.create_task(self._rebuild(projections))

    def _is_under_way(self) -> bool:
        return self._rebuilding is not None and not self._rebuilding.done()

    async def stop(self) -> None:
        """Gives up what is under way."""
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
            self._rebuilding = None

    async def tend(self, connection: Connection) -> dict[str, Exception]:
        """Says from time to time that it is under way.

        Returns:
            When it has ended: why, of those that could not be rebuilt.
        """
        if self._rebuilding is None:
            return {}
        if self._rebuilding.done():
            failures = self._rebuilding.result()
            self._rebuilding = None
            return failures
        if monotonic() - self._told_at > TOLD_EVERY_SECONDS:
            self._told_at = monotonic()
            names = [projection.name for projection in self.projections]
            await connection.execute(_UNDER_WAY, (names,))
        return {}

    async def _rebuild(self, projections: Sequence[Projection]) -> dict[str, Exception]:
        """Rebuilds projections, together or at least those that can be.

        Returns:
            Why, of those that cannot.
        """
        try:
            await self._rebuild_patiently(projections)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises stops its projection, loudly
            if len(projections) == 1:
                return {projections[0].name: error}
            failures: dict[str, Exception] = {}
            for projection in projections:
                failures |= await self._rebuild([projection])
            return failures
        return {}

    async def _rebuild_patiently(self, projections: Sequence[Projection]) -> None:
        delay = _BACKOFF_SECONDS[0]
        while True:
            try:
                await rebuild(self._dsn, self._schema, projections)
            except (StoreUnavailable, StoreBusy, OSError) as error:
                _log.warning("rebuilding begins anew: %s", describe(error))
            else:
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

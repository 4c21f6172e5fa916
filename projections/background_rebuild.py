"""Rebuilds, in the background of the projector, tables that other code folded or that are far behind.

Their old rows stay until the new ones are complete; meanwhile the other tables keep following the log.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from eventstore.errors import StoreBusy, StoreUnavailable
from eventstore.redaction import describe
from projections.rebuild import rebuild

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from projections.projection import Projection

REPORT_EVERY_SECONDS = 3.0
"""How often a rebuild in progress updates `projections`, so that the tables are not taken for stuck."""

_BACKOFF_SECONDS = (0.2, 5.0)
_IN_PROGRESS = "UPDATE projections SET updated_at = clock_timestamp() WHERE name = ANY (%s)"
_log = logging.getLogger(__name__)


class BackgroundRebuild:
    """The projections that must be rebuilt, and their rebuild.

    A rebuild has its own connections and outlives the projector's: while it replaces the old rows, it can
    block the projector for longer than the projector's timeouts.
    """

    def __init__(self, dsn: str, schema: str) -> None:
        self.projections: Sequence[Projection] = ()
        self._dsn = dsn
        self._schema = schema
        self._rebuilding: asyncio.Task[dict[str, Exception]] | None = None
        self._members: Sequence[Projection] = ()
        """The projections that `_rebuilding` is rebuilding."""
        self._reported_at = 0.0

    def __bool__(self) -> bool:
        return bool(self.projections)

    async def start(self, projections: Sequence[Projection]) -> None:
        """Rebuild exactly these. A rebuild of them that is already in progress continues."""
        self.projections = projections
        if projections and self._is_in_progress() and all(each in self._members for each in projections):
            return
        await self.stop()
        if projections:
            _log.info("rebuilding tables: %s", ", ".join(projection.name for projection in projections))
            self._members = projections
            self._rebuilding = asyncio.create_task(self._rebuild(projections))

    def _is_in_progress(self) -> bool:
        return self._rebuilding is not None and not self._rebuilding.done()

    async def stop(self) -> None:
        """Cancel the rebuild in progress."""
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
            self._rebuilding = None

    async def poll(self, connection: Connection) -> dict[str, Exception]:
        """Report from time to time that the rebuild is in progress.

        Returns:
            Once it has ended: the errors of the projections that could not be rebuilt, by name.
        """
        if self._rebuilding is None:
            return {}
        if self._rebuilding.done():
            failures = self._rebuilding.result()
            self._rebuilding = None
            return failures
        if monotonic() - self._reported_at > REPORT_EVERY_SECONDS:
            self._reported_at = monotonic()
            names = [projection.name for projection in self.projections]
            await connection.execute(_IN_PROGRESS, (names,))
        return {}

    async def _rebuild(self, projections: Sequence[Projection]) -> dict[str, Exception]:
        """Rebuild projections, together or else one by one.

        Returns:
            The errors of those that cannot be rebuilt, by name.
        """
        try:
            await self._rebuild_with_retries(projections)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises stops its projection, loudly
            if len(projections) == 1:
                return {projections[0].name: error}
            failures: dict[str, Exception] = {}
            for projection in projections:
                failures |= await self._rebuild([projection])
            return failures
        return {}

    async def _rebuild_with_retries(self, projections: Sequence[Projection]) -> None:
        delay = _BACKOFF_SECONDS[0]
        while True:
            try:
                await rebuild(self._dsn, self._schema, projections)
            except (StoreUnavailable, StoreBusy, OSError) as error:
                _log.warning("the rebuild starts over: %s", describe(error))
            else:
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

"""Warnings of keys that are still tried although they were revoked or have expired.

Such a key may have been stolen, or its user has missed that it ended. The caller gets the same answer as
for any other invalid key. The state in memory has only the valid keys, so an ended one is looked up in the
table, in the background.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from hmac import compare_digest
from time import monotonic
from typing import TYPE_CHECKING

from eventstore.errors import EventStoreError
from projections import storage
from projections.keys import KEYS
from service import api_keys
from service.http.limits import Buckets

if TYPE_CHECKING:
    from projections.keys import KeyRow
    from service.clock import DatabaseClock
    from service.reading import ReadTables

MAX_LOOKUPS = 2
"""How many keys are looked up at once. Others that are tried meanwhile are not looked up."""

_log = logging.getLogger(__name__)


class EndedKeys:
    """Looks up invalid keys, and warns of those that were valid once, at most once a minute for each."""

    def __init__(self, tables: ReadTables, clock: DatabaseClock) -> None:
        self._tables = tables
        self._clock = clock
        self._warned = Buckets(1 / 60, 1)
        self._lookups: set[asyncio.Task[None]] = set()

    def check(self, text: str, address: str) -> None:
        """Look up in the background what was sent as a key, and was not valid."""
        if text.startswith(api_keys.PREFIX) and text.isascii() and len(self._lookups) < MAX_LOOKUPS:
            task = asyncio.create_task(self._check(text, address))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)

    async def _check(self, text: str, address: str) -> None:
        id_ = api_keys.id_in(text)
        rows: list[KeyRow] = []
        with suppress(EventStoreError):
            async with self._tables.connection() as connection:
                rows = await storage.load(connection, KEYS, [id_])
        for row in rows:
            if not compare_digest(api_keys.digest_of(text), row.digest):
                continue
            state = row.state
            if state == "active" and row.expires_at is not None and row.expires_at <= self._clock.now():
                state = "expired"
            if state != "active" and not self._warned.take(row.id, monotonic()):
                _log.warning("the %s key %s is being tried from %s", state, row.id, address)

"""The table `events` in memory: how batches become rows, its constraints and its indexes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import orjson
from psycopg import errors as pg

from eventstore.events import EmailReceived
from eventstore.recorded import Recorded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

_SEPARATOR = "\x1f"
_HASH_BYTES = 32


class EventsTable:
    """The indexes and constraints of the table."""

    def __init__(self, log: Sequence[Recorded]) -> None:
        self.ids: dict[str, int] = {}
        self.gmail_ids: dict[str, str] = {}
        """The stream of the e-mail, by Gmail message id."""
        self._log = log
        self._streams = defaultdict[str, list[Recorded]](list)
        self._idempotency_keys: set[str] = set()

    def of_streams(self, streams: Iterable[str]) -> list[Recorded]:
        """All events of these streams, in log order."""
        found = [one for stream in set(streams) for one in self._streams.get(stream, ())]
        return sorted(found, key=lambda one: one.position)

    def rows(self, expected: int, recorded_at: datetime, events: int, *columns: Any) -> list[Recorded]:
        """The rows of a batch, whose columns were sent as joined text."""
        *texts, hashes = columns
        parts = [text.split(_SEPARATOR) for text in texts]
        if any(len(part) != events for part in parts) or len(hashes) != events * _HASH_BYTES:
            raise pg.DataError(f"{events} events were announced, but a different number arrived")
        return [
            Recorded(
                position=expected + number + 1,
                id=id_,
                stream=stream,
                version=int(version),
                type=type_,
                schema_version=int(schema_version),
                data=data,
                actor=actor,
                caused_by=int(cause) if cause else None,
                correlation_id=correlation_id,
                idempotency_key=key or None,
                recorded_at=recorded_at,
                hash=hashes[number * _HASH_BYTES : (number + 1) * _HASH_BYTES],
            )
            for number, (
                id_,
                stream,
                version,
                type_,
                schema_version,
                data,
                actor,
                cause,
                correlation_id,
                key,
            ) in enumerate(zip(*parts, strict=True))
        ]

    def check(self, batch: Sequence[Recorded]) -> None:
        """Raise the error of the first constraint that a batch violates."""
        new: set[tuple[str, object]] = set()
        for one in batch:
            if one.caused_by is not None and one.caused_by >= one.position:
                raise pg.CheckViolation(f"{one.position} is caused by {one.caused_by}")
            unique = {("id", one.id), ("version", (one.stream, one.version))}
            if one.idempotency_key:
                unique.add(("key", one.idempotency_key))
            if gmail_id := _gmail_id(one):
                unique.add(("gmail id", gmail_id))
            if unique & new or self._exists(one, gmail_id):
                raise pg.UniqueViolation(f"{one.stream} {one.version}")
            new |= unique

    def take(self, batch: Sequence[Recorded]) -> None:
        """Index a batch that has been appended."""
        for one in batch:
            self.ids[one.id] = one.position
            self._streams[one.stream].append(one)
            if one.idempotency_key:
                self._idempotency_keys.add(one.idempotency_key)
            if gmail_id := _gmail_id(one):
                self.gmail_ids[gmail_id] = one.stream

    def key_destroyed_by(self, forgotten: Recorded) -> str:
        """The id of the key that an event destroys."""
        return str(orjson.loads(forgotten.data)["key_id"])

    def _exists(self, one: Recorded, gmail_id: str | None) -> bool:
        return (
            one.id in self.ids
            or any(other.version == one.version for other in self._streams.get(one.stream, ()))
            or one.idempotency_key in self._idempotency_keys
            or gmail_id in self.gmail_ids
        )


def _gmail_id(recorded: Recorded) -> str | None:
    if recorded.type != EmailReceived.type:
        return None
    return str(orjson.loads(recorded.data)["gmail_message_id"])

"""The hash chain: every event's hash covers the previous one, so history cannot be changed unnoticed.

The formula, which can be checked without this code:

    hash = SHA-256( previous hash (32 bytes; zeros before the first event)
                    || envelope, UTF-8, each field followed by a line feed:
                       position, id, stream, version, type, schema_version, actor, caused_by or empty,
                       correlation_id, idempotency_key or empty, recorded_at in microseconds since 1970
                    || data, UTF-8, exactly as stored )

No field of the envelope can hold a line feed (a constraint of the table), so no two envelopes share a text.
docs/audit.md has the same check in plain Python and in SQL.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, LiteralString

from eventstore.errors import ChainBroken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventstore.recorded import Recorded

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

IS_ON_A_CLOCK: LiteralString = "recorded_at BETWEEN '0001-01-01Z' AND '9999-12-31 23:59:59.999999Z'"
"""Whether the time of a row is usable. Postgres also has infinite times, and years outside 1 to 9999."""

HASHED_TEXT: LiteralString = (
    r"coalesce(position || E'\n' || id || E'\n' || stream || E'\n' || version || E'\n' || type || E'\n'"
    r" || schema_version || E'\n' || actor || E'\n' || coalesce(caused_by::text, '') || E'\n'"
    r" || correlation_id || E'\n'"
    r" || CASE idempotency_key WHEN '' THEN NULL ELSE coalesce(idempotency_key, '') END || E'\n'"
    rf" || CASE WHEN {IS_ON_A_CLOCK} THEN trim_scale(extract(epoch FROM recorded_at) * 1000000) END"
    r" || E'\n' || data, '')"
)
"""Envelope and data of a row of `events` as one text: what is hashed after the previous hash.

It never fails and is never NULL, whatever was written into the row. It is empty if a field is NULL that
every event has; otherwise a field could be emptied and its content moved into its neighbor, with the same
text. It is also empty if the idempotency key is an empty text, which would read as if there were none, and
if the time is not `IS_ON_A_CLOCK`.
"""


def microseconds(moment: datetime) -> int:
    """Return the whole microseconds since 1970-01-01T00:00:00Z."""
    return (moment - _EPOCH) // _MICROSECOND


def link(
    previous: bytes,
    *,
    position: int,
    id: str,  # noqa: A002 - the field's name in the log
    stream: str,
    version: int,
    type: str,  # noqa: A002 - the field's name in the log
    schema_version: int,
    actor: str,
    caused_by: int | None,
    correlation_id: str,
    idempotency_key: str | None,
    recorded_at_microseconds: int,
    data: str,
) -> bytes:
    """Return the hash of an event that follows one whose hash is `previous`."""
    envelope = (
        f"{position}\n{id}\n{stream}\n{version}\n{type}\n{schema_version}\n{actor}\n"
        f"{'' if caused_by is None else caused_by}\n{correlation_id}\n{idempotency_key or ''}\n"
        f"{recorded_at_microseconds}\n{data}"
    )
    return sha256(previous + envelope.encode()).digest()


def hash_of(previous: bytes, recorded: Recorded) -> bytes:
    """Return what `recorded.hash` must be after an event whose hash is `previous`."""
    return link(
        previous,
        position=recorded.position,
        id=recorded.id,
        stream=recorded.stream,
        version=recorded.version,
        type=recorded.type,
        schema_version=recorded.schema_version,
        actor=recorded.actor,
        caused_by=recorded.caused_by,
        correlation_id=recorded.correlation_id,
        idempotency_key=recorded.idempotency_key,
        recorded_at_microseconds=microseconds(recorded.recorded_at),
        data=recorded.data,
    )


def verify(previous: bytes, events: Iterable[Recorded]) -> bytes:
    """Check the chain of consecutive events and return the last hash.

    Raises:
        ChainBroken: at the first event whose hash does not match its content and the previous hash.
    """
    for recorded in events:
        if hash_of(previous, recorded) != recorded.hash:
            raise ChainBroken(recorded.position)
        previous = recorded.hash
    return previous

"""Events before and after they are appended: two types, because they guarantee different things."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from eventstore.events import AnyEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GENESIS_HASH = bytes(32)
"""The previous hash of the first event."""


class NewEvent(Struct, frozen=True, gc=False):
    """An event that was decided and is not in the log yet."""

    event: AnyEvent
    caused_by: int | None = None
    """The position of the event that led to this one, if any."""


class Recorded(NamedTuple):
    """An event as the log stores it. `data` is the exact stored text, which is what was hashed."""

    position: int
    """Place in the total order, from 1, without gaps."""
    id: str
    """UUIDv7, assigned before the append, so that a commit of unknown outcome can be looked up."""
    stream: str
    version: int
    """Place in the stream, from 1, without gaps."""
    type: str
    schema_version: int
    data: str
    """If it is sealed, `eventstore.sealing` makes it readable."""
    actor: str
    """Who did it, such as `agent:email_agent` or `system:clock`."""
    caused_by: int | None
    correlation_id: str
    """The same for all events of one request."""
    idempotency_key: str | None
    recorded_at: datetime
    """The database's clock; never earlier than the previous event."""
    hash: bytes
    """SHA-256 over the previous event's hash and everything above; see `eventstore.chain`."""


class MalformedRow(NamedTuple):
    """A malformed row of the log: a field is NULL, or its time is not usable.

    Only the table's owner or a superuser can have caused it.
    """

    position: int
    id: str | None
    stream: str | None
    version: int | None
    type: str | None
    schema_version: int | None
    data: str | None
    actor: str | None
    caused_by: int | None
    correlation_id: str | None
    idempotency_key: str | None
    recorded_at: str | None
    """As Postgres prints it, such as `infinity`."""
    hash: bytes | None


class FoldInput(NamedTuple):
    """The fields of an event that a fold needs: half as much to read and to convert."""

    position: int
    type: str
    schema_version: int
    data: str
    actor: str
    caused_by: int | None
    recorded_at: datetime


AnyRecorded = Recorded | FoldInput

recorded_of: Callable[[Sequence[Any]], Recorded] = partial(tuple.__new__, Recorded)
malformed_row_of: Callable[[Sequence[Any]], MalformedRow] = partial(tuple.__new__, MalformedRow)
fold_input_of: Callable[[Sequence[Any]], FoldInput] = partial(tuple.__new__, FoldInput)
"""The same as `_make`, without the overhead of a Python function: these are called for every row."""


class Head(Struct, frozen=True, gc=False):
    """The end of the log."""

    position: int
    hash: bytes
    recorded_at: datetime | None


EMPTY_LOG = Head(0, GENESIS_HASH, None)

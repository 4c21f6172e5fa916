"""An event on its way into the log, and one in it: two types, because they promise different things."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from eventstore.events import AnyEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GENESIS_HASH = bytes(32)
"""The hash "before" the first event."""


class NewEvent(Struct, frozen=True, gc=False):
    """A fact that was decided and is not yet in the log."""

    event: AnyEvent
    caused_by: int | None = None
    """Position of the event that led to this one, where one did."""


class Recorded(NamedTuple):
    """An event as the log keeps it. `data` is the stored text, to the letter: it is what was hashed."""

    position: int
    """Place in the one total order; 1 for the first event, without gaps."""
    id: str
    """UUIDv7, given by the writer before the append, so that a commit of unknown outcome can be found."""
    stream: str
    version: int
    """Place in the stream; 1 for its first event, without gaps."""
    type: str
    schema_version: int
    data: str
    """Where it is sealed, `eventstore.sealing` makes it readable."""
    actor: str
    """Who did it, such as `agent:email_agent` or `system:clock`."""
    caused_by: int | None
    correlation_id: str
    """The same for all events of one request."""
    idempotency_key: str | None
    recorded_at: datetime
    """The database's clock; never earlier than the event before."""
    hash: bytes
    """SHA-256 over the previous event's hash and everything above; see `eventstore.chain`."""


class Odd(NamedTuple):
    """A row of the log that is no event any more: something is missing in it, or its time is none.

    Nobody but somebody who may do anything in the database can have made it so.
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
    """As Postgres writes it, such as `infinity`."""
    hash: bytes | None


class Told(NamedTuple):
    """What a fold looks at of an event in the log: half as much to read and to make."""

    position: int
    type: str
    schema_version: int
    data: str
    actor: str
    caused_by: int | None
    recorded_at: datetime


AnyRecorded = Recorded | Told

recorded_of: Callable[[Sequence[Any]], Recorded] = partial(tuple.__new__, Recorded)
odd_of: Callable[[Sequence[Any]], Odd] = partial(tuple.__new__, Odd)
told_of: Callable[[Sequence[Any]], Told] = partial(tuple.__new__, Told)
"""What `_make` does, without a function of Python's around it: these are called for every row."""


class Head(Struct, frozen=True, gc=False):
    """Where the log ends."""

    position: int
    hash: bytes
    recorded_at: datetime | None


EMPTY_LOG = Head(0, GENESIS_HASH, None)

"""The log as a file: JSON Lines that keep it byte for byte, and that anyone can check without this code.

Each line is an object whose `kind` says what it is:

- `header`, the first: `format`, `version`, `squad` (the id of the log's first event), and where the file
  begins: `after` that position, with the `hash` of the event there;
- `key`, before all events: the keys of sealed payloads (`eventstore.keys`). They can be left out, and then
  what is sealed stays unreadable;
- `event`: the fields of the log, in its order; `data` is a string, so that it is the exact text that was
  stored and hashed;
- `end`, the last: the number of `events`, the last `position` and its `hash`, so that a truncated file is
  noticed.

Lines of future kinds will go between the header and the first event. This module checks the shape of single
lines; `eventstore.importing` checks the file as a whole.
"""

from __future__ import annotations

from base64 import b64encode
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from eventstore import timestamps
from eventstore.ids import ID
from eventstore.recorded import MalformedRow, Recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventstore.keys import StoredKey
    from eventstore.recorded import Head

FORMAT = "squad-log"
VERSION = 1

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Far longer than any event that the service accepts; a file without line ends must not exhaust memory."""

_Id = Annotated[str, Field(pattern=f"^{ID.pattern}$")]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Position = Annotated[int, Field(ge=1, lt=2**63)]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Header(_Object):
    """The first line."""

    kind: Literal["header"]
    format: Literal["squad-log"]
    version: Literal[1]
    squad: _Id | None
    after: _Count
    hash: _Hash


class KeyLine(_Object):
    """A key's line."""

    kind: Literal["key"]
    id: _Id
    subject: str | None
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]
    created_at: str


class _Event(_Object):
    # The other values are checked where they are used, or by the constraints of the table.
    kind: Literal["event"]
    position: _Position
    id: _Id
    stream: str
    version: _Position
    type: str
    schema_version: Annotated[int, Field(ge=1, lt=2**15)]
    data: str
    actor: str
    caused_by: _Position | None
    correlation_id: str
    idempotency_key: Annotated[str, Field(min_length=1)] | None
    recorded_at: str
    hash: str


class End(_Object):
    """The last line."""

    kind: Literal["end"]
    events: _Count
    position: _Count
    hash: _Hash


_LINE: TypeAdapter[Header | KeyLine | _Event | End] = TypeAdapter(
    Annotated[Header | KeyLine | _Event | End, Field(discriminator="kind")]
)

EventValues = tuple[Any, ...]
"""The values of an event's line, in the order of the log's fields; `recorded_at` and `hash` are text."""

_VALUES: Callable[[Any], EventValues] = itemgetter(*Recorded._fields)
_TYPES = (int, str, str, int, str, int, str, str, int, str, str, str, str)
_NOTHING = type(None)
_PLAIN_TYPES = {
    (*_TYPES[:8], cause, _TYPES[9], key, *_TYPES[11:])
    for cause in (int, _NOTHING)
    for key in (str, _NOTHING)
}
"""The possible types of an event's values in JSON, in the order of the log's fields."""


def header_line(squad: str | None, start: Head) -> bytes:
    """Return the first line of a file whose events follow `start`."""
    return orjson.dumps(
        {
            "kind": "header",
            "format": FORMAT,
            "version": VERSION,
            "squad": squad,
            "after": start.position,
            "hash": start.hash.hex(),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def key_line(key: StoredKey) -> bytes:
    """Return the line of a key."""
    return orjson.dumps(
        {
            "kind": "key",
            "id": key.id,
            "subject": key.subject,
            "key": b64encode(key.key).decode(),
            "created_at": timestamps.to_text(key.created_at),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def event_line(recorded: Recorded | MalformedRow) -> bytes:
    """Return the line of an event, or of a malformed row, which cannot be imported."""
    time = (
        recorded.recorded_at
        if isinstance(recorded, MalformedRow)
        else timestamps.to_text(recorded.recorded_at)
    )
    return orjson.dumps(
        {
            "kind": "event",
            **recorded._asdict(),
            "recorded_at": time,
            "hash": recorded.hash and recorded.hash.hex(),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def end_line(events: int, end: Head) -> bytes:
    """Return the last line of a file of so many events, of which the last is at `end`."""
    return orjson.dumps(
        {"kind": "end", "events": events, "position": end.position, "hash": end.hash.hex()},
        option=orjson.OPT_APPEND_NEWLINE,
    )


def parse(line: bytes) -> Header | KeyLine | End | EventValues:
    """Parse a line.

    Raises:
        ValueError: it is not a line of such a file; the message says why.
    """
    if values := _plain_event(line):
        return values
    try:
        parsed = _LINE.validate_json(line)
    except ValidationError as error:
        raise ValueError(_message(error)) from error
    return _VALUES(parsed.model_dump()) if isinstance(parsed, _Event) else parsed


def _plain_event(line: bytes) -> EventValues | None:
    """Return the values of an event's line, fast; None if the line needs full validation."""
    try:
        fields = orjson.loads(line)
        values: EventValues = _VALUES(fields)
    except (ValueError, LookupError, TypeError):
        return None
    _, id_, _, version, _, schema_version, _, _, caused_by, _, idempotency_key, _, _ = values
    if (
        len(fields) == len(_Event.model_fields)
        and fields.get("kind") == "event"
        and tuple(map(type, values)) in _PLAIN_TYPES
        and version > 0
        and schema_version > 0
        and (caused_by is None or caused_by > 0)
        and idempotency_key != ""
        and ID.fullmatch(id_)
    ):
        return values
    return None


def _message(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "union_tag_not_found":
        return "it has no kind, as each line of squad export has"
    # The first part of the location is the kind of line.
    where = ".".join(str(part) for part in fault["loc"][1:])
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{where}: {message}" if where else message

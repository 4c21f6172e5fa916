"""The log as a file: JSON Lines that hold it to the letter, and that anyone can check without this code.

Each line is an object whose `kind` says what it is:

- `header`, the first: `format`, `version`, `squad` (the id of the log's first event), and where the file
  begins: `after` that position, with the `hash` of the event there;
- `key`, before all events: what sealed payloads are read with (`eventstore.keys`). Keys can be left out,
  and then what is sealed stays unreadable;
- `event`: the fields of the log, in its order; `data` is a string, so that it is the very text that was
  stored and hashed;
- `end`, the last: how many `events` there are, the last `position` and its `hash`, so that a file whose end
  is missing is noticed.

`Arriving` takes such lines one after another, believes nothing, and says of the first that does not fit
which one it is, and why.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from eventstore import codec, moments, sealing
from eventstore.chain import hash_of
from eventstore.errors import ImportRefused, UnknownEventType, UnreadableEvent
from eventstore.keys import StoredKey
from eventstore.recorded import EMPTY_LOG, GENESIS_HASH, Head, Recorded

if TYPE_CHECKING:
    from datetime import datetime

FORMAT = "squad-log"
VERSION = 1

LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""No event that the service lets in comes near; a file without line ends must not fill the memory."""

_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Position = Annotated[int, Field(ge=1, lt=2**63)]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Header(_Object):
    kind: Literal["header"]
    format: Literal["squad-log"]
    version: Literal[1]
    squad: _Id | None
    after: _Count
    hash: _Hash


class _Key(_Object):
    kind: Literal["key"]
    id: _Id
    subject: str | None
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]
    created_at: str


class _Event(_Object):
    # What is not looked at here is looked at where it is used, or by the table's own constraints.
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


class _End(_Object):
    kind: Literal["end"]
    events: _Count
    position: _Count
    hash: _Hash


_LINE: TypeAdapter[_Header | _Key | _Event | _End] = TypeAdapter(
    Annotated[_Header | _Key | _Event | _End, Field(discriminator="kind")]
)


def header_line(squad: str | None, start: Head) -> bytes:
    """The first line of a file whose events follow `start`."""
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
    """The line of a key."""
    return orjson.dumps(
        {
            "kind": "key",
            "id": key.id,
            "subject": key.subject,
            "key": b64encode(key.key).decode(),
            "created_at": moments.to_text(key.created_at),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def event_line(recorded: Recorded) -> bytes:
    """The line of an event."""
    return orjson.dumps(
        {
            "kind": "event",
            **recorded._asdict(),
            "recorded_at": moments.to_text(recorded.recorded_at),
            "hash": recorded.hash.hex(),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def end_line(events: int, end: Head) -> bytes:
    """The last line of a file of so many events, whose last one is at `end`."""
    return orjson.dumps(
        {"kind": "end", "events": events, "position": end.position, "hash": end.hash.hex()},
        option=orjson.OPT_APPEND_NEWLINE,
    )


class Arriving:
    """A log that arrives line by line, into a squad that has none yet."""

    def __init__(self) -> None:
        self.lines = 0
        self.head = EMPTY_LOG
        self._header: _Header | None = None
        self._ended = False
        self._first_event_line = 0

    def take(self, line: bytes) -> Recorded | StoredKey | None:
        """The event or the key that the next line holds; None where the line is of another kind.

        Raises:
            ImportRefused: the line is not what it has to be.
        """
        self.lines += 1
        if self._ended:
            self._refuse("it follows the line that says it is the last")
        if not line.strip():
            self._refuse("it is empty")
        if len(line) > LONGEST_LINE_BYTES:
            self._refuse(f"it is longer than {LONGEST_LINE_BYTES:,} bytes")
        try:
            parsed = _LINE.validate_json(line)
        except ValidationError as error:
            self._refuse(_in_words(error))
        if (self._header is None) != isinstance(parsed, _Header):
            self._refuse("the header has to be the first line, and only that")
        match parsed:
            case _Event():
                return self._event(parsed)
            case _Key():
                return self._key(parsed)
            case _Header():
                self._begin(parsed)
            case _End():
                self._end(parsed)
        return None

    def finish(self) -> None:
        """Says that there are no more lines.

        Raises:
            ImportRefused: the last one was missing.
        """
        if not self._ended:
            raise ImportRefused(f"the file was cut off: after line {self.lines} it has no last line")

    def line_of(self, position: int) -> int:
        """The line that the event at a position came in."""
        return self._first_event_line + position - 1

    def _begin(self, header: _Header) -> None:
        if header.after:
            self._refuse(f"the file begins after position {header.after}, an import needs the whole log")
        if header.hash != GENESIS_HASH.hex():
            self._refuse("the hash before the first event has to be all zeros")
        self._header = header

    def _key(self, key: _Key) -> StoredKey:
        if self.head.position:
            self._refuse("keys have to come before the events")
        return StoredKey(key.id, key.subject, b64decode(key.key), self._moment(key.created_at))

    def _event(self, event: _Event) -> Recorded:
        head = self.head
        if event.position != head.position + 1:
            self._refuse(f"position {event.position} cannot follow position {head.position}")
        if not head.position:
            self._first_event_line = self.lines
            assert self._header is not None
            if event.id != self._header.squad:
                self._refuse("the header names another first event")
        recorded = Recorded(
            event.position,
            event.id,
            event.stream,
            event.version,
            event.type,
            event.schema_version,
            event.data,
            event.actor,
            event.caused_by,
            event.correlation_id,
            event.idempotency_key,
            self._moment(event.recorded_at),
            b"",
        )
        hash_ = hash_of(head.hash, recorded)
        if hash_.hex() != event.hash:
            self._refuse("its hash does not follow from what it says and the hash before")
        if head.recorded_at is not None and recorded.recorded_at < head.recorded_at:
            self._refuse("it is recorded earlier than the event before")
        if event.caused_by is not None and event.caused_by >= event.position:
            self._refuse("it is caused by an event that is not before it")
        try:
            # Sealed or not: whether its key came along is nobody's business here.
            codec.decode(sealing.opened(recorded, {}))
        except (UnknownEventType, UnreadableEvent) as error:
            self._refuse(str(error))
        self.head = Head(recorded.position, hash_, recorded.recorded_at)
        return recorded._replace(hash=hash_)

    def _end(self, end: _End) -> None:
        head = self.head
        if (end.events, end.position, end.hash) != (head.position, head.position, head.hash.hex()):
            self._refuse(
                f"it says that {end.events} events end at position {end.position}, and they do not"
            )
        if self._header is not None and self._header.squad and not head.position:
            self._refuse("the header names a first event, and there is none")
        self._ended = True

    def _moment(self, text: str) -> datetime:
        try:
            return moments.from_text(text)
        except ValueError as error:
            self._refuse(str(error))

    def _refuse(self, why: str) -> NoReturn:
        raise ImportRefused(f"line {self.lines}: {why}")


def _in_words(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    # The first part of the place is the kind of line.
    where = ".".join(str(part) for part in fault["loc"][1:])
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{where}: {message}" if where else message

"""A log that arrives line by line: nothing is believed, and the first line that does not fit is named."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, NoReturn

from eventstore import codec, moments, sealing
from eventstore.bounds import FARTHEST_DAY, out_of_bounds
from eventstore.chain import link, microseconds
from eventstore.errors import ImportRefused, UnknownEventType, UnreadableEvent
from eventstore.events import AppendAbandoned, BudgetDayReset
from eventstore.exchange import LONGEST_LINE_BYTES, End, Header, KeyOf, parse
from eventstore.keys import StoredKey
from eventstore.recorded import EMPTY_LOG, GENESIS_HASH, Head, Recorded

if TYPE_CHECKING:
    from datetime import datetime


_FILED_EARLIER = (AppendAbandoned.type, "log")
"""Where events of a kind stood once that nobody finds by their stream."""


class Arriving:
    """A log that arrives line by line, into a squad that has none yet.

    Args:
        now: the clock of the database that it is to lie in. Until it has come to the last event's time, the
            squad's stands still.
    """

    def __init__(self, now: datetime | None = None) -> None:
        self.lines = 0
        self._now = now
        self.head: Head = EMPTY_LOG
        self._header: Header | None = None
        self._ended = False
        self._first_event_line = 0
        self._secrets: dict[str, bytes] = {}

    def take(self, line: bytes) -> Recorded | StoredKey | None:
        """The event or the key that the next line holds; None where the line is of another kind.

        Raises:
            ImportRefused: the line is not what it has to be.
        """
        self.lines += 1
        if self._ended:
            self._refuse("it follows the line that says it is the last")
        if not line or line.isspace():
            self._refuse("it is empty")
        if len(line) > LONGEST_LINE_BYTES:
            self._refuse(f"it is longer than {LONGEST_LINE_BYTES:,} bytes")
        try:
            parsed = parse(line)
        except ValueError as error:
            self._refuse(str(error))
        if (self._header is None) != isinstance(parsed, Header):
            self._refuse("the header has to be the first line, and only that")
        if isinstance(parsed, Header):
            self._begin(parsed)
        elif isinstance(parsed, End):
            self._end(parsed)
        elif isinstance(parsed, KeyOf):
            return self._key(parsed)
        else:
            return self._event(*parsed)
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

    def _begin(self, header: Header) -> None:
        if header.after:
            self._refuse(f"the file begins after position {header.after}, an import needs the whole log")
        if header.hash != GENESIS_HASH.hex():
            self._refuse("the hash before the first event has to be all zeros")
        self._header = header

    def _key(self, key: KeyOf) -> StoredKey:
        if self.head.position:
            self._refuse("keys have to come before the events")
        secret = b64decode(key.key)
        self._secrets[key.id] = secret
        return StoredKey(key.id, key.subject, secret, self._moment(key.created_at))

    def _event(
        self,
        position: int,
        id_: str,
        stream: str,
        version: int,
        type_: str,
        schema_version: int,
        data: str,
        actor: str,
        caused_by: int | None,
        correlation_id: str,
        idempotency_key: str | None,
        recorded_at: str,
        hash_: str,
    ) -> Recorded:
        head = self.head
        if position != head.position + 1:
            self._refuse(f"position {position} cannot follow position {head.position}")
        if not head.position:
            self._begin_events(id_)
        moment = self._moment(recorded_at)
        computed = link(
            head.hash,
            position=position,
            id=id_,
            stream=stream,
            version=version,
            type=type_,
            schema_version=schema_version,
            actor=actor,
            caused_by=caused_by,
            correlation_id=correlation_id,
            idempotency_key=idempotency_key,
            recorded_at_microseconds=microseconds(moment),
            data=data,
        )
        if computed.hex() != hash_:
            self._refuse("its hash does not follow from what it says and the hash before")
        if head.recorded_at is not None and moment < head.recorded_at:
            self._refuse("it is recorded earlier than the event before")
        if self._now is not None and moment - self._now > FARTHEST_DAY:
            self._refuse(
                f"it is recorded at {recorded_at}, more than a year from now, and until then the squad's"
                " clock would stand still; what is before it can be imported, exported with --until"
                f" {head.position}"
            )
        if caused_by is not None and caused_by >= position:
            self._refuse("it is caused by an event that is not before it")
        recorded = Recorded(
            position,
            id_,
            stream,
            version,
            type_,
            schema_version,
            data,
            actor,
            caused_by,
            correlation_id,
            idempotency_key,
            moment,
            computed,
        )
        try:
            # As whoever has the keys will read it; without its key a sealed one stays unreadable.
            shown = sealing.opened(recorded, self._secrets) if sealing.may_be_sealed(recorded) else recorded
            event = codec.decode(shown)
        except (UnknownEventType, UnreadableEvent) as error:
            self._refuse(str(error))
        # What a stream is named by is never sealed.
        if event.stream != stream and (type_, stream) != _FILED_EARLIER:
            self._refuse(f"it is filed under {stream!r}, and belongs to {event.stream!r}")
        if field := out_of_bounds(event):
            self._refuse(f"its {field} is beyond what the tables can hold")
        if isinstance(event, BudgetDayReset):
            self._must_be_about_now(event, moment)
        # In the open the log's own table refuses it.
        if shown is not recorded and sealing.holds_nul(shown.data):
            self._refuse("it holds U+0000, which no table can")
        self.head = Head(position, computed, moment)
        return recorded

    def _must_be_about_now(self, event: BudgetDayReset, moment: datetime) -> None:
        for day in (event.day, event.starts_at.date(), event.ends_at.date()):
            if abs(day - moment.date()) > FARTHEST_DAY:
                self._refuse(f"it begins the day {day}, which is not when it is recorded")

    def _begin_events(self, id_: str) -> None:
        self._first_event_line = self.lines
        if self._header is not None and self._header.squad != id_:
            self._refuse("the header names another first event")

    def _end(self, end: End) -> None:
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

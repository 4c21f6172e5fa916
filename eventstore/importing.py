"""Validate a log that is imported line by line: trust nothing, and name the first line that is wrong."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, NoReturn

from eventstore import codec, sealing, timestamps
from eventstore.bounds import MAX_DAY_OFFSET, out_of_bounds
from eventstore.chain import link, microseconds
from eventstore.errors import ImportRefused, UnknownEventType, UnreadableEvent
from eventstore.events import AppendAbandoned, BudgetDayReset
from eventstore.exchange import MAX_LINE_BYTES, End, Header, KeyLine, parse
from eventstore.keys import StoredKey
from eventstore.nul import contains_nul
from eventstore.recorded import EMPTY_LOG, GENESIS_HASH, Head, Recorded

if TYPE_CHECKING:
    from datetime import datetime


_FORMERLY_IN = (AppendAbandoned.type, "log")
"""A type of event, and the stream that it was once appended to. Nothing looks these events up by stream."""


class ImportedLog:
    """A log that is imported line by line, into a squad that has none yet.

    Args:
        now: the clock of the target database. The squad's clock will stand still until this one reaches the
            last event's time.
    """

    def __init__(self, now: datetime | None = None) -> None:
        self.lines = 0
        self._now = now
        self.head: Head = EMPTY_LOG
        self._header: Header | None = None
        self._ended = False
        self._first_event_line = 0
        self._secrets: dict[str, bytes] = {}

    def validate_line(self, line: bytes) -> Recorded | StoredKey | None:
        """Return the event or the key that the next line holds; None for a line of another kind.

        Raises:
            ImportRefused: the line is not valid.
        """
        self.lines += 1
        if self._ended:
            self._refuse("it follows the end line")
        if not line or line.isspace():
            self._refuse("it is empty")
        if len(line) > MAX_LINE_BYTES:
            self._refuse(f"it is longer than {MAX_LINE_BYTES:,} bytes")
        try:
            parsed = parse(line)
        except ValueError as error:
            self._refuse(str(error))
        if (self._header is None) != isinstance(parsed, Header):
            self._refuse("the header must be the first line, and no other")
        if isinstance(parsed, Header):
            self._begin(parsed)
        elif isinstance(parsed, End):
            self._end(parsed)
        elif isinstance(parsed, KeyLine):
            return self._key(parsed)
        else:
            return self._event(*parsed)
        return None

    def finish(self) -> None:
        """Check that the log is complete. Call it after the last line.

        Raises:
            ImportRefused: the end line is missing.
        """
        if not self._ended:
            raise ImportRefused(f"the file is truncated: it has no end line after line {self.lines}")

    def line_of(self, position: int) -> int:
        """Return the number of the line that held the event at a position."""
        return self._first_event_line + position - 1

    def _begin(self, header: Header) -> None:
        if header.after:
            self._refuse(f"the file begins after position {header.after}, an import needs the whole log")
        if header.hash != GENESIS_HASH.hex():
            self._refuse("the hash before the first event must be all zeros")
        self._header = header

    def _key(self, key: KeyLine) -> StoredKey:
        if self.head.position:
            self._refuse("keys must come before the events")
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
            self._refuse("its hash does not match its content and the previous hash")
        if head.recorded_at is not None and moment < head.recorded_at:
            self._refuse("it is recorded earlier than the previous event")
        if self._now is not None and moment - self._now > MAX_DAY_OFFSET:
            self._refuse(
                f"it is recorded at {recorded_at}, more than a year from now, and the squad's clock would"
                " stand still until then; to import only the events before it, export the log with --until"
                f" {head.position}"
            )
        if caused_by is not None and caused_by >= position:
            self._refuse("its cause does not precede it")
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
            # Checked as readers with the keys will see it. Without its key, a sealed event stays sealed.
            shown = (
                sealing.reveal_event(recorded, self._secrets)
                if sealing.may_be_sealed(recorded)
                else recorded
            )
            event = codec.decode(shown)
        except (UnknownEventType, UnreadableEvent) as error:
            self._refuse(str(error))
        # The fields that a stream is named after are never sealed.
        if event.stream != stream and (type_, stream) != _FORMERLY_IN:
            self._refuse(f"it is in the stream {stream!r}, but belongs to {event.stream!r}")
        if field := out_of_bounds(event):
            self._refuse(f"its {field} is beyond what the tables can hold")
        if isinstance(event, BudgetDayReset):
            self._check_budget_day(event, moment)
        # In an event that is not sealed, the table of the log refuses it.
        if shown is not recorded and contains_nul(shown.data):
            self._refuse("it contains U+0000, which no table can hold")
        self.head = Head(position, computed, moment)
        return recorded

    def _check_budget_day(self, event: BudgetDayReset, moment: datetime) -> None:
        for day in (event.day, event.starts_at.date(), event.ends_at.date()):
            if abs(day - moment.date()) > MAX_DAY_OFFSET:
                self._refuse(f"it names the day {day}, more than a year from when it is recorded")

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
            return timestamps.from_text(text)
        except ValueError as error:
            self._refuse(str(error))

    def _refuse(self, why: str) -> NoReturn:
        raise ImportRefused(f"line {self.lines}: {why}")

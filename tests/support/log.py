"""Events appended without decisions, for tests of storing, reading and following the log."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from uuid_utils import uuid7

from eventstore import codec, log, sealing
from eventstore.chain import hash_of
from eventstore.events import AgentRegistered, MessageSent
from eventstore.recorded import EMPTY_LOG, Head, Recorded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent


def new_id() -> str:
    return str(uuid7())


def message_sent(text: str, *, agent: str = "alice") -> MessageSent:
    return MessageSent(
        message_id=new_id(), agent=agent, to_agent=None, message=text, task_id=None, data=None
    )


def agent_registered(agent: str) -> AgentRegistered:
    return AgentRegistered(
        agent=agent, agent_id=new_id(), role="tester", url=None, priority=0, automatic=False
    )


class LogWriter:
    """Appends events like a writer, but without decisions."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.head: Head = EMPTY_LOG
        self._versions: Counter[str] = Counter()

    def row(self, event: AnyEvent, recorded_at: datetime, **different: Any) -> Recorded:
        """The event as the next row of the log, with these columns replaced."""
        row = Recorded(
            position=self.head.position + 1,
            id=new_id(),
            stream=event.stream,
            version=self._versions[event.stream] + 1,
            type=event.type,
            schema_version=event.schema_version,
            data=codec.encode(event),
            actor="test:scribe",
            caused_by=None,
            correlation_id="scribe",
            idempotency_key=None,
            recorded_at=recorded_at,
            hash=b"",
        )._replace(**different)
        return row._replace(hash=hash_of(self.head.hash, row))

    def _advance_head(self, row: Recorded) -> None:
        self.head = Head(row.position, row.hash, row.recorded_at)
        self._versions[row.stream] = row.version

    async def catch_up(self) -> None:
        """Advance to the head of the log, past the events of others."""
        while page := await log.read_after(self.connection, self.head.position):
            for row in page:
                self._advance_head(row)

    async def append(
        self, *events: AnyEvent, at: datetime | None = None, **different: Any
    ) -> list[Recorded]:
        """Append the events as one batch, recorded now or at the given moment.

        If that raises, `head` is unchanged.
        """
        now = await log.clock(self.connection)
        before, versions = self.head, self._versions.copy()
        rows: list[Recorded] = []
        try:
            for event in events:
                rows.append(self.row(event, at or now, **different))
                self._advance_head(rows[-1])
            await log.append(self.connection, rows, now)
        except BaseException:
            self.head, self._versions = before, versions
            raise
        return rows


async def stored_log(connection: Connection) -> list[Recorded]:
    """All events, as stored."""
    events: list[Recorded] = []
    while page := await log.read_after(connection, len(events)):
        events += page
    return events


async def whole_log(connection: Connection) -> list[Recorded]:
    """All events, decrypted."""
    return await sealing.reveal(connection, await stored_log(connection))


def message_texts(events: Sequence[Recorded]) -> list[str]:
    """The texts of those events that are messages."""
    decoded = (codec.decode(recorded) for recorded in events)
    return [event.message for event in decoded if isinstance(event, MessageSent)]

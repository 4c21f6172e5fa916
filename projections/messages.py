"""squad_messages and their acknowledgements: what the agents told each other."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from eventstore.events import ERASED, MessageAcknowledged, MessageSent, SubjectForgotten
from projections.projection import MissingRow, Projection, Row, Table, keys_in

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View


class MessageRow(Row, frozen=True):
    """A message; without `to_agent`, it is for everybody."""

    id: str
    from_agent: str
    to_agent: str | None
    message: str
    task_id: str | None
    data: dict[str, Any] | None
    created_at: datetime
    position: int


class AckRow(Row, frozen=True):
    """An agent's acknowledgement of a message."""

    message_id: str
    agent: str
    acknowledged_at: datetime
    position: int


MESSAGES = Table[str, MessageRow](
    "squad_messages",
    MessageRow,
    key=("id",),
    types=("uuid", "text", "text", "text", "text", "jsonb", "timestamptz", "bigint"),
)
ACKS = Table[tuple[str, str], AckRow](
    "squad_message_acks",
    AckRow,
    key=("message_id", "agent"),
    types=("uuid", "text", "timestamptz", "bigint"),
)

messages = Projection("messages", (MESSAGES, ACKS))


@messages.on(MessageSent)
def _sent(view: View, event: MessageSent, recorded: AnyRecorded) -> None:
    row = MessageRow(
        event.message_id,
        event.agent,
        event.to_agent,
        event.message,
        event.task_id,
        event.data,
        recorded.recorded_at,
        recorded.position,
    )
    view.rows(MESSAGES).put(event.message_id, row)


@messages.on(MessageAcknowledged)
def _acknowledged(view: View, event: MessageAcknowledged, recorded: AnyRecorded) -> None:
    row = AckRow(event.message_id, event.agent, recorded.recorded_at, recorded.position)
    view.rows(ACKS).put((event.message_id, event.agent), row)


@messages.on(
    SubjectForgotten,
    reads=(keys_in(MESSAGES, "messages"),),
)
def _forgotten(view: View, event: SubjectForgotten, recorded: AnyRecorded) -> None:
    """Erase what is forgotten. A message keeps its place in the list."""
    del recorded
    rows = view.rows(MESSAGES)
    for message_id in event.messages:
        row = rows.get(message_id)
        if row is None:
            raise MissingRow(MESSAGES, message_id)
        rows.put(message_id, row.replaced(message=ERASED, data=None))

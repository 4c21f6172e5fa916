"""What commands need from the log beyond the state in memory: finished things, and earlier answers.

It is read in a round trip or two before a batch is decided, and holds as long as the log's head does; where
the head moves, the batch's events are not appended and it is read again. All other commands wait meanwhile,
so no more is read than matters: a claim or a message can have a story as long as the log.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from eventstore import codec, lookup, sealing, traces
from eventstore.events import (
    EmailReceived,
    EmailUpdated,
    MessageSent,
    RequestAnswered,
    SubjectForgotten,
    TokensReleased,
    TokensReserved,
    TokensSettled,
)
from eventstore.lookup import Ends
from eventstore.translation import translating
from projections.budgets import RESERVATIONS, reservation_after
from projections.emails import EMAILS, emails
from projections.jobs import JOBS, jobs
from projections.keys import KEYS, keys
from projections.messages import messages
from projections.operations import OPERATIONS, operations
from projections.projection import Table
from projections.tasks import TASKS, tasks
from service import commands as do
from service.requests import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from eventstore.connection import Connection
    from eventstore.keys import Keyring
    from eventstore.recorded import Recorded
    from service.memory.draft import Draft
    from service.memory.state import State
    from service.requests import Ticket

_KINDS = {
    "message": messages,
    "operation": operations,
    "task": tasks,
    "email": emails,
    "job": jobs,
    "key": keys,
}
"""Which projection alone tells a stream's story, by the first part of the stream's name."""


_EMAIL_TYPES = frozenset({EmailReceived.type, EmailUpdated.type})


class Kept(NamedTuple):
    """An earlier answer, and the fingerprint of the request that it was given to."""

    fingerprint: str
    answer: Answer


class Needs(NamedTuple):
    """What is to be read."""

    streams: list[str]
    ends: list[Ends]
    """Streams that can be very long, and of which little matters."""
    gmail_message_ids: list[str]
    subjects: list[str]

    def __bool__(self) -> bool:
        return bool(self.streams or self.ends or self.gmail_message_ids or self.subjects)


def needs(state: State, tickets: Iterable[Ticket]) -> Needs:
    """What these commands need that is not in memory."""
    wanted = Needs([], [], [], [])
    for ticket in tickets:
        request = ticket.request
        command = request.command
        if request.idempotency_key:
            wanted.streams.append(f"request-{request.idempotency_key}")
        if request.batch_key:
            wanted.streams.append(f"request-{request.batch_key}")
        if stream := _stream(state, command):
            if type(command) in _BY_ITS_ENDS:
                wanted.ends.append(Ends(stream, command.acting_agent))
            else:
                wanted.streams.append(stream)
        elif type(command) is do.LogEmail and not state.email_with(command.gmail_message_id):
            wanted.gmail_message_ids.append(command.gmail_message_id)
        elif type(command) is do.ForgetSubject:
            wanted.subjects.append(command.subject)
    return wanted


async def read(connection: Connection, wanted: Needs, keyring: Keyring | None = None) -> list[Recorded]:
    """The events that tell what is needed, in the log's order, readable as far as there are keys."""
    # The commands of a batch share its key.
    streams = list(dict.fromkeys(wanted.streams))
    if wanted.gmail_message_ids:
        query = (
            "SELECT stream FROM events"
            " WHERE type = 'email_received' AND data ->> 'gmail_message_id' = ANY(%s)"
        )
        with translating():
            cursor = await connection.execute(query, (wanted.gmail_message_ids,), prepare=True)
            streams += [row[0] for row in await cursor.fetchall()]
    return await stories(connection, streams, keyring, wanted.ends) if streams or wanted.ends else []


async def stories(
    connection: Connection,
    streams: Sequence[str],
    keyring: Keyring | None = None,
    in_brief: Sequence[Ends] = (),
) -> list[Recorded]:
    """The events of streams in the log's order, readable, with those that erased something of theirs.

    See `eventstore.lookup.read_streams` for those `in_brief`.
    """
    history = await lookup.read_streams(connection, streams, in_brief)
    if ends := streams_of_keys(history):
        history = sorted([*history, *await lookup.read_streams(connection, ends)], key=_position)
    return await sealing.reveal(connection, history, keyring, veiled=(MessageSent.type,))


def streams_of_keys(history: Iterable[Recorded]) -> list[str]:
    """The streams that tell the ends of the keys that e-mails are sealed with."""
    keys = (sealing.key_of(row) for row in history if row.type in _EMAIL_TYPES)
    return sorted({SubjectForgotten.stream_of(key) for key in keys if key})


def _position(recorded: Recorded) -> int:
    return recorded.position


async def find_traces(connection: Connection, draft: Draft, wanted: Needs) -> None:
    """Lets a draft know what there is of those who are to be forgotten."""
    for subject in wanted.subjects:
        draft.traces[subject] = await traces.find(connection, subject)


def fold(draft: Draft, history: Iterable[Recorded]) -> dict[str, Kept]:
    """Lets a draft know what was read. Only the things themselves: their effects on others are known.

    Returns:
        The earlier answers by idempotency key.
    """
    answers: dict[str, Kept] = {}
    recalled: set[str] = set()
    for recorded in history:
        event = codec.decode(recorded)
        match event:
            case SubjectForgotten():
                # Others that it erased are in memory as they are by now, or not at all.
                ours = [email_id for email_id in event.emails if email_id in recalled]
                emails.apply(draft, structs.replace(event, emails=ours), recorded)
            case RequestAnswered():
                answers[event.key] = Kept(event.fingerprint, Answer(event.status, event.body))
                continue
            case TokensReserved() | TokensSettled() | TokensReleased():
                rows = draft.rows(RESERVATIONS)
                rows.put(
                    event.reservation_id, reservation_after(rows.get(event.reservation_id), event, recorded)
                )
            case _:
                if projection := _KINDS.get(recorded.stream.partition("-")[0]):
                    projection.apply(draft, event, recorded)
        if isinstance(event, EmailReceived):
            recalled.add(event.email_id)
            draft.gmail_ids.put(event.gmail_message_id, event.email_id)
        draft.versions.put(recorded.stream, recorded.version)
    draft.keep()
    return answers


class _About(NamedTuple):
    """What a command is about that may be finished already, or never was in memory."""

    kind: str
    field: str
    table: Table[Any, Any] | None = None
    """Where it is as long as it is in memory."""


_ABOUT: Mapping[type[do.AnyCommand], _About] = MappingProxyType(
    {
        do.AcknowledgeMessage: _About("message", "message_id"),
        do.RenewOperation: _About("operation", "operation_id", OPERATIONS),
        do.FinishOperation: _About("operation", "operation_id", OPERATIONS),
        do.SettleReservation: _About("reservation", "reservation_id", RESERVATIONS),
        do.ReleaseReservation: _About("reservation", "reservation_id", RESERVATIONS),
        do.UpdateTask: _About("task", "task_id", TASKS),
        do.UpdateEmail: _About("email", "email_id", EMAILS),
        # One that was removed may come back, and its stream goes on; or it matters who removed it.
        do.DefineJob: _About("job", "name", JOBS),
        do.RemoveJob: _About("job", "name", JOBS),
        do.WithdrawJob: _About("job", "name", JOBS),
        do.CreateKey: _About("key", "key_id", KEYS),
        do.RevokeKey: _About("key", "key_id", KEYS),
    }
)
"""By command. Looked up for each of them, where a `match` would ask a dozen times what it is not."""

_BY_ITS_ENDS = frozenset({do.AcknowledgeMessage, do.RenewOperation, do.FinishOperation})
"""Those for which the ends of that thing's stream will do, and what the agent did in it: it has an
acknowledgement for every reader of a message, and a refusal for everybody whom a claim turned away."""


def _stream(state: State, command: do.AnyCommand) -> str | None:
    about = _ABOUT.get(type(command))
    if about is None:
        return None
    id_ = getattr(command, about.field)
    is_known = about.table is not None and state.rows(about.table).get(id_) is not None
    return None if is_known else f"{about.kind}-{id_}"

"""What commands need from the log beyond the state in memory: finished entities and earlier answers.

It is read in one or two round trips before a batch is decided, and stays valid until the log's head moves;
then the batch's events are not appended and it is read again. All other commands wait meanwhile, so only
what matters is read: the stream of a claim or a message can be as long as the log.
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
from eventstore.lookup import StreamExcerpt
from eventstore.translation import translating
from projections.budgets import RESERVATIONS, fold_reservation
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

_PROJECTIONS = {
    "message": messages,
    "operation": operations,
    "task": tasks,
    "email": emails,
    "job": jobs,
    "key": keys,
}
"""The one projection that folds an entity's stream, by the first part of the stream's name."""

_EMAIL_TYPES = frozenset({EmailReceived.type, EmailUpdated.type})


class EarlierAnswer(NamedTuple):
    """An earlier answer, and the fingerprint of the request that it answered."""

    fingerprint: str
    answer: Answer


class RequiredReads(NamedTuple):
    """What has to be read."""

    streams: list[str]
    excerpts: list[StreamExcerpt]
    """Streams that can be very long, but of which little is needed."""
    gmail_message_ids: list[str]
    subjects: list[str]

    def __bool__(self) -> bool:
        return bool(self.streams or self.excerpts or self.gmail_message_ids or self.subjects)


def required_reads(state: State, tickets: Iterable[Ticket]) -> RequiredReads:
    """Return what these commands need that is not in memory."""
    reads = RequiredReads([], [], [], [])
    for ticket in tickets:
        request = ticket.request
        command = request.command
        if request.idempotency_key:
            reads.streams.append(f"request-{request.idempotency_key}")
        if request.batch_key:
            reads.streams.append(f"request-{request.batch_key}")
        if stream := _stream(state, command):
            if type(command) in _EXCERPTED:
                reads.excerpts.append(StreamExcerpt(stream, command.acting_agent))
            else:
                reads.streams.append(stream)
        elif type(command) is do.LogEmail and not state.email_with(command.gmail_message_id):
            reads.gmail_message_ids.append(command.gmail_message_id)
        elif type(command) is do.ForgetSubject:
            reads.subjects.append(command.subject)
    return reads


async def read(
    connection: Connection, reads: RequiredReads, keyring: Keyring | None = None
) -> list[Recorded]:
    """Read the events needed, in log order, decrypted as far as keys exist."""
    # The commands of a batch share its key.
    streams = list(dict.fromkeys(reads.streams))
    if reads.gmail_message_ids:
        query = (
            "SELECT stream FROM events"
            " WHERE type = 'email_received' AND data ->> 'gmail_message_id' = ANY(%s)"
        )
        with translating():
            cursor = await connection.execute(query, (reads.gmail_message_ids,), prepare=True)
            streams += [row[0] for row in await cursor.fetchall()]
    return (
        await read_revealed_streams(connection, streams, keyring, reads.excerpts)
        if streams or reads.excerpts
        else []
    )


async def read_revealed_streams(
    connection: Connection,
    streams: Sequence[str],
    keyring: Keyring | None = None,
    excerpts: Sequence[StreamExcerpt] = (),
) -> list[Recorded]:
    """Read the events of streams in log order, decrypted, along with the events that erased parts of them.

    See `eventstore.lookup.read_streams` for `excerpts`.
    """
    history = await lookup.read_streams(connection, streams, excerpts)
    if key_streams := streams_of_keys(history):
        history = sorted([*history, *await lookup.read_streams(connection, key_streams)], key=_position)
    return await sealing.reveal(connection, history, keyring, erased_types=(MessageSent.type,))


def streams_of_keys(history: Iterable[Recorded]) -> list[str]:
    """Return the streams that record the destruction of the keys that these e-mails are sealed with."""
    keys = (sealing.key_of(row) for row in history if row.type in _EMAIL_TYPES)
    return sorted({SubjectForgotten.stream_of(key) for key in keys if key})


def _position(recorded: Recorded) -> int:
    return recorded.position


async def find_traces(connection: Connection, draft: Draft, reads: RequiredReads) -> None:
    """Look up what the log holds about the subjects to be forgotten, and add it to a draft."""
    for subject in reads.subjects:
        draft.traces[subject] = await traces.find(connection, subject)


def fold(draft: Draft, history: Iterable[Recorded]) -> dict[str, EarlierAnswer]:
    """Fold what was read into a draft: only the entities, as the state already has their effects on others.

    Returns:
        The earlier answers, by idempotency key.
    """
    answers: dict[str, EarlierAnswer] = {}
    recalled: set[str] = set()
    for recorded in history:
        event = codec.decode(recorded)
        match event:
            case SubjectForgotten():
                # The other e-mails it erased are either in memory and up to date, or not there at all.
                ours = [email_id for email_id in event.emails if email_id in recalled]
                emails.apply(draft, structs.replace(event, emails=ours), recorded)
            case RequestAnswered():
                answers[event.key] = EarlierAnswer(event.fingerprint, Answer(event.status, event.body))
                continue
            case TokensReserved() | TokensSettled() | TokensReleased():
                rows = draft.rows(RESERVATIONS)
                rows.put(
                    event.reservation_id, fold_reservation(rows.get(event.reservation_id), event, recorded)
                )
            case _:
                if projection := _PROJECTIONS.get(recorded.stream.partition("-")[0]):
                    projection.apply(draft, event, recorded)
        if isinstance(event, EmailReceived):
            recalled.add(event.email_id)
            draft.gmail_ids.put(event.gmail_message_id, event.email_id)
        draft.versions.put(recorded.stream, recorded.version)
    draft.set_savepoint()
    return answers


class _Entity(NamedTuple):
    """The entity that a command is about, which may be finished already or was never in memory."""

    kind: str
    field: str
    table: Table[Any, Any] | None = None
    """The table that it is in while it is in memory."""


_ENTITIES: Mapping[type[do.AnyCommand], _Entity] = MappingProxyType(
    {
        do.AcknowledgeMessage: _Entity("message", "message_id"),
        do.RenewOperation: _Entity("operation", "operation_id", OPERATIONS),
        do.FinishOperation: _Entity("operation", "operation_id", OPERATIONS),
        do.SettleReservation: _Entity("reservation", "reservation_id", RESERVATIONS),
        do.ReleaseReservation: _Entity("reservation", "reservation_id", RESERVATIONS),
        do.UpdateTask: _Entity("task", "task_id", TASKS),
        do.UpdateEmail: _Entity("email", "email_id", EMAILS),
        # A removed job may be defined again and its stream goes on, or it matters who removed it.
        do.DefineJob: _Entity("job", "name", JOBS),
        do.RemoveJob: _Entity("job", "name", JOBS),
        do.WithdrawJob: _Entity("job", "name", JOBS),
        do.CreateKey: _Entity("key", "key_id", KEYS),
        do.RevokeKey: _Entity("key", "key_id", KEYS),
    }
)
"""By type of command. A lookup, because a `match` would try a dozen cases for most commands."""

_EXCERPTED = frozenset({do.AcknowledgeMessage, do.RenewOperation, do.FinishOperation})
"""Commands that need only the ends of the entity's stream and the agent's own events in it: there is one
acknowledgement for every reader of a message, and one refusal for everybody whom a claim turned away."""


def _stream(state: State, command: do.AnyCommand) -> str | None:
    entity = _ENTITIES.get(type(command))
    if entity is None:
        return None
    id_ = getattr(command, entity.field)
    is_known = entity.table is not None and state.rows(entity.table).get(id_) is not None
    return None if is_known else f"{entity.kind}-{id_}"

"""Decide one batch of commands, one after another, on a draft. Pure: no I/O, and time is passed in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from uuid_utils import uuid7

from eventstore.events import AnyEvent, AppendAbandoned, RequestAnswered, TokensDenied
from eventstore.recorded import NewEvent, Recorded
from projections.budgets import RESERVATIONS
from service.commands import ForgetSubject
from service.decide import DecisionContext, Refused, access, budget, clock, decide
from service.history.recall import EarlierAnswer
from service.logs import log_extra
from service.memory.state import EXPIRING
from service.refusals import Refusal
from service.requests import Answer, CommandFailed, Outcome, Ticket
from service.writing.command_queue import MAX_BATCH_BYTES, MAX_BATCH_EVENTS
from service.writing.recorder import Recorder
from service.writing.sealer import Sealer

if TYPE_CHECKING:
    from service.commands import AnyCommand
    from service.decide import Decision
    from service.memory.draft import Draft
    from service.requests import Request

CLOCK_STEP = timedelta(milliseconds=250)
"""Minimum interval between checks for what is due, so that not every batch scans all that is active."""

MAX_DUE_PER_BATCH = 1_000
"""How many due things of each kind one batch handles; the next batch continues from there. After an hour
without any process there can be any number of them."""

CLOCK_ACTOR = "system:clock"
_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Decided commands, and the events to append for them all together."""

    tickets: Sequence[Ticket]
    outcomes: list[tuple[Ticket, Outcome | Exception]]
    recorded: list[Recorded]
    events: list[AnyEvent]
    """The events of `recorded`, in plain text."""
    decided_at: datetime
    """The database's clock as estimated when the batch was decided."""
    sealer: Sealer | None = None
    """What sealed the events, if payloads are encrypted."""
    size: int = 0
    """Size of the events' data, in characters."""

    @property
    def is_full(self) -> bool:
        """Whether to add no more commands: a small command can have large events, or many."""
        return _is_full(self.size, len(self.recorded))

    def followed_by(self, more: Batch) -> Batch:
        """Append `more`, decided next on the same draft at the same time, and return both as one batch."""
        self.outcomes.extend(more.outcomes)
        self.recorded.extend(more.recorded)
        self.events.extend(more.events)
        return self._replace(tickets=[*self.tickets, *more.tickets], size=self.size + more.size)


def _is_full(size: int, events: int) -> bool:
    return size >= MAX_BATCH_BYTES or events >= MAX_BATCH_EVENTS


def new_id() -> str:
    """Return a fresh UUIDv7."""
    return str(uuid7())


def decide_batch(
    draft: Draft,
    tickets: Sequence[Ticket],
    answers: dict[str, EarlierAnswer],
    *,
    now: datetime,
    decided_at: datetime,
    sealer: Sealer | None = None,
    abandoned: Batch | None = None,
    ids: Callable[[], str] = new_id,
) -> Batch:
    """Decide the commands in order; each sees what those before it did. One that fails leaves no trace.

    If the batch fills up, the remaining commands are not among its tickets.

    Args:
        draft: the state at the head, with what the commands need recalled into it.
        tickets: the commands.
        answers: earlier answers by idempotency key; this batch adds its own.
        now: the time of the decisions and the events: `decided_at`, but never before the log's last event.
        decided_at: the database's clock.
        sealer: seals personal data; None to store it in plain text.
        abandoned: a batch whose commit turned out not to have happened, to be fenced off.
        ids: returns a fresh UUIDv7 at each call, for events and for what they are about.
    """
    batch = Batch(tickets, [], [], [], decided_at, sealer)
    recorder = Recorder(draft, batch, now, ids)
    if abandoned:
        recorder.record([_fence(abandoned)], "system:writer", ids())
        recorder.set_savepoint()
    _record_due_events(draft, recorder)
    for decided, ticket in enumerate(tickets):
        if decided and _is_full(recorder.size, len(batch.recorded)):
            return batch._replace(tickets=tickets[:decided], size=recorder.size)
        outcome: Outcome | Exception
        try:
            outcome = _decide_one(draft, ticket.request, recorder, answers)
            recorder.set_savepoint()
        except Exception as error:  # noqa: BLE001 - a fault in one decision is no other's
            kind, correlation_id = type(ticket.request.command).__name__, ticket.request.correlation_id
            _log.exception("deciding %s failed", kind, extra=log_extra(correlation_id))
            recorder.roll_back()
            outcome = CommandFailed(str(error))
        batch.outcomes.append((ticket, outcome))
    return batch._replace(size=recorder.size)


def _decide_one(
    draft: Draft,
    request: Request,
    recorder: Recorder,
    answers: dict[str, EarlierAnswer],
) -> Outcome:
    at = DecisionContext(recorder.now, recorder.ids, request.actor)
    if request.caller and (denied := access.authorize(draft, request.caller, request.command, at)):
        recorder.record(denied.events, request.actor, request.correlation_id)
        return Outcome({}, draft.head.position if denied.events else None, denied.refusal)
    batch_key = request.batch_key
    if batch_key and (stored := answers.get(batch_key)) and stored.fingerprint != request.bare_fingerprint:
        return Outcome({}, None, refusal=_mismatch(batch_key))
    key = request.idempotency_key
    if key and (stored := answers.get(key)):
        if request.is_repeat_of(stored.fingerprint) and not _names_other_subject(draft, request.command):
            return Outcome({}, None, repeated=stored.answer)
        return Outcome({}, None, refusal=_mismatch(key))
    decision = _decide_command(draft, request.command, recorder, at)
    recorder.record(decision.events, request.actor, request.correlation_id)
    if isinstance(decision, Refused):
        outcome = Outcome({}, draft.head.position if decision.events else None, decision.refusal)
        is_storable = bool(decision.events)
    else:
        position = draft.head.position if decision.events else decision.reply["position"]
        outcome = Outcome(decision.reply, position)
        is_storable = True
    if key and request.answer and is_storable:
        _store_answer(recorder, request, outcome, request.answer(outcome), answers)
    return outcome


def _decide_command(draft: Draft, command: AnyCommand, recorder: Recorder, at: DecisionContext) -> Decision:
    """Decide a command. Release expired reservations first before denying tokens because of them."""
    decision = decide(draft, command, at)
    while draft.no_expiry_before[RESERVATIONS.name] <= at.now and _denies_tokens(decision):
        if _is_full(recorder.size, len(recorder.batch.recorded)):
            break
        released = list(islice(budget.expired(draft, at.now), MAX_DUE_PER_BATCH))
        recorder.record(released, CLOCK_ACTOR, at.new_id())
        if len(released) < MAX_DUE_PER_BATCH:
            draft.no_expiry_before[RESERVATIONS.name] = draft.first_to_expire(RESERVATIONS.name, at.now)
        recorder.set_savepoint()
        decision = decide(draft, command, at)
    return decision


def _denies_tokens(decision: Decision) -> bool:
    return any(type(new.event) is TokensDenied for new in decision.events)


def _store_answer(
    recorder: Recorder,
    request: Request,
    outcome: Outcome,
    answer: Answer,
    answers: dict[str, EarlierAnswer],
) -> None:
    assert request.idempotency_key
    # For a request to forget somebody, keep nothing that a guess at their address could be checked against.
    is_bare = isinstance(request.command, ForgetSubject)
    fingerprint = request.bare_fingerprint if is_bare else request.fingerprint
    answered = RequestAnswered(
        key=request.idempotency_key, fingerprint=fingerprint, status=answer.status, body=answer.body
    )
    sealer = recorder.sealer
    recorder.record(
        [NewEvent(answered, outcome.position)],
        request.actor,
        request.correlation_id,
        request.idempotency_key,
        key=sealer.key_of_answer(recorder.draft, request.command) if sealer else None,
        bare_fingerprint=request.bare_fingerprint,
    )
    answers[request.idempotency_key] = EarlierAnswer(fingerprint, Answer(answer.status, answer.body))
    if request.batch_key and request.batch_key not in answers:
        _store_batch_key(recorder, request, outcome, answers)


def _store_batch_key(
    recorder: Recorder, request: Request, outcome: Outcome, answers: dict[str, EarlierAnswer]
) -> None:
    """Keep the key of a batch itself, so that no other request can use it."""
    assert request.batch_key
    marked = EarlierAnswer(request.bare_fingerprint, Answer(200, {}))
    event = RequestAnswered(
        key=request.batch_key, fingerprint=marked.fingerprint, status=marked.answer.status, body={}
    )
    recorder.record(
        [NewEvent(event, outcome.position)], request.actor, request.correlation_id, request.batch_key
    )
    answers[request.batch_key] = marked


def _names_other_subject(draft: Draft, command: AnyCommand) -> bool:
    """Whether the answer kept under a command's idempotency key is about another subject.

    The stored fingerprint of a request to forget somebody does not cover the subject. So a repeat is
    recognized by this: the subject of the first request no longer has a key.
    """
    return isinstance(command, ForgetSubject) and draft.trace(command.subject).key_id is not None


def _record_due_events(draft: Draft, recorder: Recorder) -> None:
    now = recorder.now
    if not draft.has_policy or not _is_check_due(draft, now):
        return
    correlation_id = recorder.ids()
    expiring = [name for name in EXPIRING if draft.no_expiry_before[name] <= now]
    is_all = True
    for step in clock.STEPS:
        events = list(islice(step(draft, now), MAX_DUE_PER_BATCH))
        recorder.record(events, CLOCK_ACTOR, correlation_id)
        is_all = is_all and len(events) < MAX_DUE_PER_BATCH
    if is_all:
        draft.checked_at = now
        draft.no_expiry_before.update({name: draft.first_to_expire(name, now) for name in expiring})
    recorder.set_savepoint()


def _is_check_due(draft: Draft, now: datetime) -> bool:
    day = draft.day
    checked_at = draft.checked_at
    return not checked_at or now - checked_at >= CLOCK_STEP or not day or now >= day.ends_at


def _fence(abandoned: Batch) -> NewEvent:
    return NewEvent(
        AppendAbandoned(first_event_id=abandoned.recorded[0].id, events=len(abandoned.recorded))
    )


def _mismatch(key: str) -> Refusal:
    return Refusal(
        # The part before a space was added here: client keys contain none.
        "idempotency_mismatch",
        f"the idempotency key {key.rpartition(' ')[2]!r} was used before, for a different request",
    )

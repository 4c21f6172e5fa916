"""Given/when/then stories of a squad, without a database.

A `Story` recalls, decides, folds and merges through the service's own functions; only its log is a list.
Times are seconds since `START`, or datetimes. Ids are numbered.

    given(StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}))
        .when(StartOperation(agent="bob", action="answer", resources={"emailId": "e-1"}), at=29)
        .then_refused("conflict", ...)
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
from msgspec import structs

from eventstore import codec
from eventstore.events import AnyEvent, Event
from eventstore.recorded import NewEvent, Recorded
from service.commands import AnyCommand, ClaimTick, EndAttempt, RenewRun, SetPolicy, TakeUpRun
from service.history import recall
from service.memory.draft import Draft
from service.memory.squad import Squad
from service.requests import Outcome, Request, Ticket
from service.scheduling.work import ACTOR as SCHEDULER
from service.writing.batch import CLOCK_ACTOR, Batch, decide_batch
from service.writing.recorder import Recorder
from tests.unit.vault import Vault

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from projections.projection import Row, Table
    from service.refusals import Refusal

R = TypeVar("R", bound="Row")

START = datetime(2026, 3, 2, 12, tzinfo=UTC)
"""The beginning of every story: a Monday at noon."""

FRESH = "fresh"
"""Stands, in an expected event, for any id that the batch generated."""

UNKNOWN_ID = "ffffffff-ffff-7fff-bfff-ffffffffffff"

When = float | datetime

_NOBODY_WAITS = cast("asyncio.Future[Outcome]", None)


def moment(when: When) -> datetime:
    """Return a time as a datetime; a number is seconds after `START`."""
    return when if isinstance(when, datetime) else START + timedelta(seconds=when)


def given(
    *steps: AnyCommand | Event, policy: SetPolicy | None = None, at: When = 0, encrypt: bool = False
) -> Story:
    """A squad with a policy, after these commands and events."""
    story = Story(encrypt=encrypt)
    return story.given(policy or SetPolicy(), *steps, at=at)


def _actor(command: AnyCommand) -> str:
    """Return the usual sender of such a command."""
    if isinstance(command, ClaimTick | TakeUpRun | RenewRun | EndAttempt):
        return SCHEDULER
    return f"agent:{command.acting_agent or 'tester'}"


class Story:
    """A squad, its log, and the outcomes of the last batch."""

    def __init__(self, *, encrypt: bool = False) -> None:
        self.squad = Squad()
        self.encrypt = encrypt
        self.vault = Vault()
        self.log: list[Recorded] = []
        """The log as stored: sealed if events are encrypted."""
        self.outcomes: list[Outcome | Exception] = []
        self.recorded: list[Recorded] = []
        """The events of the last batch, as stored."""
        self.revealed: list[Recorded] = []
        """The same events, as far as they could be decrypted at that time."""
        self._now = START
        self._numbers = count(1)
        self._ids: list[str] = []

    # given ------------------------------------------------------------------------------------------

    def given(self, *steps: AnyCommand | Event, at: When | None = None) -> Story:
        """Carry out commands, none of which may be refused, and append events as they are."""
        for step in steps:
            if isinstance(step, Event):
                self._append(cast("AnyEvent", step), at)
            else:
                self.when(step, at=at)
                assert self.outcome.refusal is None, self.outcome.refusal
        return self

    # when -------------------------------------------------------------------------------------------

    def when(self, *commands: AnyCommand | Request, at: When | None = None) -> Story:
        """Decide commands as one batch."""
        self.decide(
            [
                command if isinstance(command, Request) else Request(command, _actor(command), "a request")
                for command in commands
            ],
            at,
        )
        return self

    def decide(
        self, requests: Sequence[Request], at: When | None = None, abandoned: Batch | None = None
    ) -> Batch:
        """Decide a batch as the writer does, append its events and merge its draft."""
        self._move_clock(at)
        tickets = [Ticket(request, _NOBODY_WAITS) for request in requests]
        draft = Draft(self.squad)
        answers = recall.fold(draft, self.vault.reveal(self._recall(tickets)))
        for subject in recall.required_reads(self.squad, tickets).subjects:
            assert len(tickets) == 1, "a command that destroys a key has a batch of its own"
            draft.traces[subject] = self.vault.trace(self.log, subject)
        sealer = self.vault.sealer(draft, tickets, answers) if self.encrypt else None
        batch = decide_batch(
            draft,
            tickets,
            answers,
            now=self._now,
            decided_at=self._now,
            sealer=sealer,
            abandoned=abandoned,
            ids=self.new_id,
        )
        self._commit(draft, batch.recorded)
        self.outcomes = [outcome for _, outcome in batch.outcomes]
        return batch

    # then -------------------------------------------------------------------------------------------

    def then(self, *events: Event) -> Story:
        """Check that all commands were accepted, and that exactly these events were recorded."""
        for outcome in self.outcomes:
            assert isinstance(outcome, Outcome), outcome
            assert outcome.refusal is None, outcome.refusal
        return self.then_recorded(*events)

    def then_nothing(self) -> Story:
        """Check that all commands were accepted, and that nothing was recorded."""
        return self.then()

    def then_refused(self, code: str, *events: Event) -> Story:
        """Check that the last command was refused, and that exactly these events were recorded."""
        assert self.refusal.code == code
        return self.then_recorded(*events)

    def then_recorded(self, *events: Event) -> Story:
        """Check that exactly these events were recorded, apart from those that the clock caused."""
        assert self.events == list(events)
        return self

    def then_clock_recorded(self, *events: Event) -> Story:
        """Check that exactly these events were recorded because time had passed."""
        assert self.clock_events == list(events)
        return self

    def then_replied(self, **fields: Any) -> Story:
        """Check that the reply to the last command has these fields."""
        assert {name: self.reply.get(name) for name in fields} == fields
        return self

    # results ------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The time of the last batch."""
        return self._now

    @property
    def outcome(self) -> Outcome:
        """The outcome of the last command."""
        outcome = self.outcomes[-1]
        assert isinstance(outcome, Outcome), outcome
        return outcome

    @property
    def reply(self) -> dict[str, Any]:
        """The reply to the last command."""
        return self.outcome.reply

    @property
    def id(self) -> str:
        """The id in the reply to the last command."""
        return cast("str", self.reply["id"])

    @property
    def refusal(self) -> Refusal:
        """Why the last command was refused."""
        assert self.outcome.refusal is not None, self.reply
        return self.outcome.refusal

    @property
    def events(self) -> list[Event]:
        """The events of the last batch, apart from those that the clock caused."""
        return self._decoded(by_the_clock=False)

    @property
    def clock_events(self) -> list[Event]:
        """The events of the last batch that the clock caused."""
        return self._decoded(by_the_clock=True)

    def row(self, table: Table[Any, R], key: object) -> R:
        """Return a row, which must be in memory."""
        row = self.squad.rows(table).get(key)
        assert row is not None, f"no {key} in {table.name}"
        return row

    def position_of(self, kind: type[Event]) -> int:
        """Return the position of the last event of a type."""
        return next(recorded.position for recorded in reversed(self.log) if recorded.type == kind.type)

    def caused_by(self, kind: type[Event]) -> int | None:
        """Return the position that the last event of a type names as its cause."""
        return next(recorded.caused_by for recorded in reversed(self.log) if recorded.type == kind.type)

    def new_id(self) -> str:
        """Return the next id."""
        id_ = f"00000000-0000-7000-8000-{next(self._numbers):012x}"
        self._ids.append(id_)
        return id_

    # internals ----------------------------------------------------------------------------------------

    def _move_clock(self, at: When | None) -> None:
        later = self._now if at is None else moment(at)
        assert later >= self._now, "time goes forward in a story"
        self._now = later
        self._ids.clear()

    def _append(self, event: AnyEvent, at: When | None) -> None:
        self._move_clock(at)
        draft, batch = Draft(self.squad), Batch((), [], [], [], self._now)
        Recorder(draft, batch, self._now, self.new_id).record([NewEvent(event)], "tester", "given")
        self._commit(draft, batch.recorded)

    def _commit(self, draft: Draft, recorded: list[Recorded]) -> None:
        self.squad.merge(draft)
        self.log += recorded
        self.recorded, self.revealed = recorded, self.vault.reveal(recorded)
        self.vault.destroy_forgotten(recorded)

    def _recall(self, tickets: Sequence[Ticket]) -> list[Recorded]:
        """Return what `recall.read` would read from the log."""
        wanted = recall.required_reads(self.squad, tickets)
        if not wanted:
            return []
        streams = {*wanted.streams, *(excerpts.stream for excerpts in wanted.excerpts)}
        for recorded in self.log:
            if recorded.type == "email_received":
                email = orjson.loads(recorded.data)
                if email["gmail_message_id"] in wanted.gmail_message_ids:
                    streams.add(recorded.stream)
        streams.update(
            recall.streams_of_keys(recorded for recorded in self.log if recorded.stream in streams)
        )
        return [recorded for recorded in self.log if recorded.stream in streams]

    def _decoded(self, *, by_the_clock: bool) -> list[Event]:
        return [
            self._with_placeholders(codec.decode(recorded))
            for recorded in self.revealed
            if (recorded.actor == CLOCK_ACTOR) == by_the_clock
        ]

    def _with_placeholders(self, event: Event) -> Event:
        fields = structs.asdict(event).items()
        fresh = {name: FRESH for name, value in fields if isinstance(value, str) and value in self._ids}
        return structs.replace(event, **fresh)

"""The laws, checked against a log as it grows, against the answers to callers, and against states.

The rules for claims, budgets, jobs and keys are computed from the events alone, independently of the folds
(`tests.unit.invariants` and its neighbors). The answers that a caller may get follow from the log.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from eventstore import chain, codec, sealing
from eventstore.events import (
    SubjectForgotten,
)
from eventstore.recorded import GENESIS_HASH
from projections import PROJECTIONS
from projections.emails import EMAILS
from projections.jobs import JOBS
from service import commands as do
from service.memory.draft import Draft
from service.memory.residence import PARTIAL, RESIDENT
from service.memory.squad import Squad
from service.requests import Answer, CommandFailed, Outcome, OutcomeUnknown, Request, Stopping, Unavailable
from tests.model.process import Process, Promise
from tests.support.verify import fold
from tests.unit import strategies
from tests.unit.invariants import Invariants
from tests.unit.job_invariants import JobInvariants
from tests.unit.key_invariants import KeyInvariants

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.recorded import Recorded
    from tests.model.server import Server

_SAME_IN_BOTH = ("agent", "action", "resources", "tokens", "title", "message", "gmail_message_id", "key_id")
"""Fields that a command and the event it leads to have in common."""


class Asked(NamedTuple):
    """A request to a process, and its result."""

    request: Request
    promise: Promise
    process: Process


class Laws:
    """Follows the log and the answers; raises if either breaks a promise."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = defaultdict(list)
        """Ids that commands may refer to, by field name."""
        self.asked: list[Asked] = []
        self._buried: list[Process] = []
        self._unjudged: list[Asked] = []
        self._invariants, self._job_invariants, self._key_invariants = (
            Invariants(),
            JobInvariants(),
            KeyInvariants(),
        )
        self._log: list[Recorded] = []
        """The events, decrypted with the keys at the time when they were taken."""
        self._hashes = [GENESIS_HASH]
        self._ids: set[str] = set()
        self._versions: dict[str, int] = defaultdict(int)
        self._append_of: dict[str, int] = {}
        """The number of the append with a request's events, by correlation id."""
        self._last: dict[str, Recorded] = {}
        """A request's last event, by correlation id, other than its stored answer."""
        self._users: dict[str, str] = {}
        """The request that was carried out with an idempotency key."""
        self._answers: dict[str, tuple[Request, Answer]] = {}
        """The first request with an idempotency key that was answered, and its answer."""
        self._destroyed_keys: set[str] = set()
        self._settled: set[str] = set()
        """Requests whose callers were told that nothing happened."""
        self._squad = Squad()
        """The state from folding all events one at a time."""

    # the log --------------------------------------------------------------------------------------------

    def take(self, server: Server) -> None:
        """Take the events that have been appended since the last call."""
        new = server.log[len(self._log) :]
        for stored, shown in zip(new, server.reveal(new), strict=True):
            assert shown.position == len(self._log) + 1, "a gap"
            assert chain.hash_of(self._hashes[-1], stored) == stored.hash
            self._hashes.append(stored.hash)
            self._check_seal(stored)
            self._take(shown, server.append_of[shown.position - 1])
            # Recorded with the database's time, or the previous event's, whatever the process believed.
            assert shown.recorded_at <= server.latest + timedelta(seconds=1)

    def _check_seal(self, stored: Recorded) -> None:
        """Fail if an event is encrypted with a destroyed key, which readers would report as lost."""
        event = codec.decode(stored) if stored.type == SubjectForgotten.type else None
        if isinstance(event, SubjectForgotten):
            self._destroyed_keys.add(event.key_id)
        elif sealing.may_be_sealed(stored):
            assert sealing.key_of(stored) not in self._destroyed_keys, "sealed with a destroyed key"

    def _take(self, recorded: Recorded, append: int) -> None:
        before = self._log[-1] if self._log else None
        self._versions[recorded.stream] += 1
        assert recorded.version == self._versions[recorded.stream]
        assert before is None or before.recorded_at <= recorded.recorded_at, "time goes backwards"
        assert recorded.caused_by is None or 0 < recorded.caused_by < recorded.position
        assert recorded.id not in self._ids, "an event is in the log twice"
        self._ids.add(recorded.id)
        self._log.append(recorded)
        is_first = append == self._append_of.setdefault(recorded.correlation_id, append)
        assert is_first, "a request was carried out twice"
        assert recorded.correlation_id not in self._settled, "a caller was told that nothing happened"
        if recorded.type != "request_answered":
            self._last[recorded.correlation_id] = recorded
        event = codec.decode(recorded)
        self._invariants.take(event, recorded)
        self._job_invariants.take(event, recorded.recorded_at)
        self._key_invariants.take(event, recorded.recorded_at)
        strategies.collect_ids(event, self.known)
        draft = Draft(self._squad)
        draft.fold(event, recorded)
        self._squad.merge(draft)

    # the answers ----------------------------------------------------------------------------------------

    def ask(self, asked: Asked) -> None:
        """Remember a request."""
        self.asked.append(asked)
        self._unjudged.append(asked)

    def bury(self, process: Process) -> None:
        """Note that a process was killed, so it owes no answers any more."""
        self._buried.append(process)

    def judge_answers(self) -> None:
        """Check the answers since the last call against the log as it is now."""
        left = []
        for asked in self._unjudged:
            if asked.promise.result is None:
                left.append(asked)
            else:
                self._judge(asked.request, asked.promise.result)
        self._unjudged = left

    def judge_all(self, server: Server, now: datetime) -> None:
        """Check that all callers have got a true answer, and that every tick up to now has an outcome."""
        assert all(asked.process in self._buried for asked in self._unjudged)
        for key, user in self._users.items():
            request = next(asked.request for asked in self.asked if asked.request.correlation_id == user)
            assert request.idempotency_key == key
        for job in self._squad.tables[JOBS.name]:
            self._job_invariants.check_ticks(job, now - strategies.LONGEST_JITTER)
        assert server.log[-1].hash == self._hashes[-1]

    def _judge(self, request: Request, result: Outcome | Exception) -> None:
        if isinstance(result, Exception):
            # It promises that nothing happened, or nothing at all.
            assert isinstance(result, OutcomeUnknown | CommandFailed | Stopping | Unavailable), result
            if not isinstance(result, OutcomeUnknown):
                self._settle(request)
            return
        if result.position is not None:
            assert 0 < result.position <= len(self._log), "an answer before it was durable"
        if request.idempotency_key:
            self._judge_key(request, request.idempotency_key, result)
        own = self._last.get(request.correlation_id)
        if own is None:
            if request.correlation_id not in self._append_of:
                self._settle(request)
            return
        assert result.position == own.position
        if result.refusal is None:
            self._judge_content(request, result)
        elif conflict := result.refusal.extra.get("conflict"):
            cause = self._log[conflict["position"] - 1]
            assert own.caused_by == cause.position
            assert cause.stream == f"operation-{conflict['operation_id']}"

    def _settle(self, request: Request) -> None:
        """Check that a request has no events, and never will."""
        assert request.correlation_id not in self._append_of
        self._settled.add(request.correlation_id)

    def _judge_content(self, request: Request, result: Outcome) -> None:
        """Check that what was acknowledged is in the log, at that position and as requested."""
        assert result.position
        own = [event for event in self._log if event.correlation_id == request.correlation_id]
        events = [codec.decode(event) for event in own if event.type != "request_answered"]
        if token := result.reply.get("fencing_token"):
            assert token == result.position
        match request.command:
            case (
                do.StartOperation() | do.ReserveTokens() | do.CreateTask() | do.LogEmail() | do.CreateKey()
            ):
                last = events[-1]
                assert result.reply["id"] in structs.asdict(last).values()
                for field in _SAME_IN_BOTH:
                    if field in last.__struct_fields__ and hasattr(request.command, field):
                        assert getattr(last, field) == getattr(request.command, field)

    def _judge_key(self, request: Request, key: str, result: Outcome) -> None:
        was_carried_out = request.correlation_id in self._append_of
        if result.refusal and result.refusal.code == "idempotency_mismatch":
            assert not was_carried_out
            return
        if result.repeated:
            assert not was_carried_out
            answer = result.repeated
        elif was_carried_out:
            assert request.answer is not None
            answer = request.answer(result)
            user = self._users.setdefault(key, request.correlation_id)
            assert user == request.correlation_id, "one key had two effects"
        else:
            return
        first, told = self._answers.setdefault(key, (request, answer))
        assert told == answer, "two answers to one key"
        # Once its personal data was forgotten, a request is identified by the rest.
        assert first.fingerprint == request.fingerprint or (
            first.bare_fingerprint == request.bare_fingerprint
        )

    # the states -----------------------------------------------------------------------------------------

    def judge_state(self, process: Process) -> None:
        """Check that a state is the fold of the log up to its position, however it was built."""
        squad = process.squad
        assert squad.head.position <= len(self._log)
        assert squad.head.hash == self._hashes[squad.head.position]
        if not squad.head.position or squad.head != self._squad.head:
            return
        for name, rows in squad.tables.items():
            if name not in PARTIAL:
                assert rows == self._squad.tables[name], name
        assert squad.holders == self._squad.holders
        for name in PARTIAL:
            for row in squad.tables[name].values():
                stream = RESIDENT[name].stream(row)
                assert stream is not None
                assert squad.versions[stream] == self._versions[stream]
        assert all(self._versions[stream] == version for stream, version in squad.versions.items())

    def judge_end(self, process: Process) -> None:
        """Check that a process at the head has observed every event, and knows everything that is open."""
        seen = [recorded.id for recorded in process.seen]
        assert seen == [recorded.id for recorded in self._log[len(self._log) - len(seen) :]]
        squad: Any = process.squad
        assert not squad.absent
        for name, rows in self._open_rows().items():
            assert squad.tables[name] == rows, name
        emails = squad.tables[EMAILS.name].values()
        assert squad.gmail_ids == {email.gmail_message_id: email.id for email in emails}

    def _open_rows(self) -> dict[str, dict[Any, Any]]:
        """The open rows of the tables that are partly in memory, from a fold of all events."""
        return {
            table.name: {
                key: row
                for key, row in fold(projection, self._log)[table.name].items()
                if RESIDENT[table.name].is_active(row)
            }
            for projection in PROJECTIONS
            for table in projection.tables
            if table.name in PARTIAL
        }

"""The laws, checked against the growing log, the answers to callers, and the states in memory.

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

_SHARED_FIELDS = (
    "agent",
    "action",
    "resources",
    "tokens",
    "title",
    "message",
    "gmail_message_id",
    "key_id",
)
"""Fields that a command and the event it leads to have in common."""


class TrackedRequest(NamedTuple):
    """A request to a process, and its result."""

    request: Request
    promise: Promise
    process: Process


class Laws:
    """Follows the log and the answers, and fails if either breaks a law."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = defaultdict(list)
        """Ids that commands may refer to, by field name."""
        self.requests: list[TrackedRequest] = []
        self._killed: list[Process] = []
        self._unchecked: list[TrackedRequest] = []
        self._invariants, self._job_invariants, self._key_invariants = (
            Invariants(),
            JobInvariants(),
            KeyInvariants(),
        )
        self._log: list[Recorded] = []
        """The events, decrypted with the keys that existed when they were taken."""
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
        self._not_carried_out: set[str] = set()
        """Requests whose callers were told that they had no effect."""
        self._squad = Squad()
        """The state from folding all events one at a time."""

    # the log --------------------------------------------------------------------------------------------

    def take(self, server: Server) -> None:
        """Take the events that have been appended since the last call."""
        new = server.log[len(self._log) :]
        for stored, decrypted in zip(new, server.reveal(new), strict=True):
            assert decrypted.position == len(self._log) + 1, "positions have a gap"
            assert chain.hash_of(self._hashes[-1], stored) == stored.hash
            self._hashes.append(stored.hash)
            self._check_key(stored)
            self._take(decrypted, server.append_of[decrypted.position - 1])
            # The time is the database's or the previous event's, whatever the process's clock shows.
            assert decrypted.recorded_at <= server.latest + timedelta(seconds=1)

    def _check_key(self, stored: Recorded) -> None:
        """Fail if an event is encrypted with a destroyed key, which readers would report as lost."""
        event = codec.decode(stored) if stored.type == SubjectForgotten.type else None
        if isinstance(event, SubjectForgotten):
            self._destroyed_keys.add(event.key_id)
        elif sealing.may_be_sealed(stored):
            assert sealing.key_of(stored) not in self._destroyed_keys, "encrypted with a destroyed key"

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
        assert recorded.correlation_id not in self._not_carried_out, (
            "a caller was told that the request had no effect"
        )
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

    def track(self, tracked: TrackedRequest) -> None:
        """Remember a request."""
        self.requests.append(tracked)
        self._unchecked.append(tracked)

    def mark_killed(self, process: Process) -> None:
        """Note that a process was killed, so that its requests may stay unanswered."""
        self._killed.append(process)

    def check_answers(self) -> None:
        """Check the answers since the last call against the log as it is now."""
        unanswered = []
        for tracked in self._unchecked:
            if tracked.promise.result is None:
                unanswered.append(tracked)
            else:
                self._check_answer(tracked.request, tracked.promise.result)
        self._unchecked = unanswered

    def check_all_answered(self, server: Server, now: datetime) -> None:
        """Check that all live callers were answered, and that every tick up to now has an outcome."""
        assert all(tracked.process in self._killed for tracked in self._unchecked)
        for key, user in self._users.items():
            request = next(
                tracked.request for tracked in self.requests if tracked.request.correlation_id == user
            )
            assert request.idempotency_key == key
        for job in self._squad.tables[JOBS.name]:
            self._job_invariants.check_ticks(job, now - strategies.LONGEST_JITTER)
        assert server.log[-1].hash == self._hashes[-1]

    def _check_answer(self, request: Request, result: Outcome | Exception) -> None:
        if isinstance(result, Exception):
            # Either the request had no effect, or its outcome is unknown.
            assert isinstance(result, OutcomeUnknown | CommandFailed | Stopping | Unavailable), result
            if not isinstance(result, OutcomeUnknown):
                self._mark_not_carried_out(request)
            return
        if result.position is not None:
            assert 0 < result.position <= len(self._log), "answered before the commit"
        if request.idempotency_key:
            self._check_idempotency(request, request.idempotency_key, result)
        own = self._last.get(request.correlation_id)
        if own is None:
            if request.correlation_id not in self._append_of:
                self._mark_not_carried_out(request)
            return
        assert result.position == own.position
        if result.refusal is None:
            self._check_content(request, result)
        elif conflict := result.refusal.extra.get("conflict"):
            cause = self._log[conflict["position"] - 1]
            assert own.caused_by == cause.position
            assert cause.stream == f"operation-{conflict['operation_id']}"

    def _mark_not_carried_out(self, request: Request) -> None:
        """Check that a request has no events yet; `_take` checks that it never will."""
        assert request.correlation_id not in self._append_of
        self._not_carried_out.add(request.correlation_id)

    def _check_content(self, request: Request, result: Outcome) -> None:
        """Check that an acknowledged request is in the log, at the answer's position, with its content."""
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
                for field in _SHARED_FIELDS:
                    if field in last.__struct_fields__ and hasattr(request.command, field):
                        assert getattr(last, field) == getattr(request.command, field)

    def _check_idempotency(self, request: Request, key: str, result: Outcome) -> None:
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
            assert user == request.correlation_id, "one idempotency key had two effects"
        else:
            return
        first, stored = self._answers.setdefault(key, (request, answer))
        assert stored == answer, "one idempotency key got two answers"
        # Once its personal data is erased, a request is identified by the remaining fields.
        assert first.fingerprint == request.fingerprint or (
            first.bare_fingerprint == request.bare_fingerprint
        )

    # the states -----------------------------------------------------------------------------------------

    def check_state(self, process: Process) -> None:
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

    def check_final_state(self, process: Process) -> None:
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

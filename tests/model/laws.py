"""The laws, held against a log as it grows and against what callers were told."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore import chain, codec
from eventstore.events import (
    EmailReceived,
    Event,
    MessageSent,
    OperationStarted,
    RunStarted,
    TaskCreated,
    TokensReserved,
)
from eventstore.recorded import GENESIS_HASH
from projections import PROJECTIONS
from service import commands as do
from service.requests import Answer, CommandFailed, Outcome, OutcomeUnknown, Request, Stopping
from service.squad import PARTIAL, RESIDENT, Draft, Squad
from tests.model.process import Process, Promise
from tests.support.verify import fold
from tests.unit import strategies
from tests.unit.job_rules import JobRules
from tests.unit.rules import Rules

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.recorded import Recorded


class Asked(NamedTuple):
    """A request that was made of a process, and what its caller was told."""

    request: Request
    promise: Promise
    process: Process


class Laws:
    """Follows the log and the answers; raises where either breaks a promise."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = defaultdict(list)
        """Ids that commands may aim at, by the field that names them."""
        self.asked: list[Asked] = []
        self._rules, self._job_rules = Rules(), JobRules()
        self._log: list[Recorded] = []
        self._hash = GENESIS_HASH
        self._versions: dict[str, int] = defaultdict(int)
        self._appends: dict[str, set[int]] = defaultdict(set)
        """Which appends hold events of a request, by its correlation id."""
        self._last: dict[str, Recorded] = {}
        """A request's last event, its kept answer apart."""
        self._answers: dict[str, tuple[str, Answer]] = {}
        """By idempotency key: the fingerprint that it came with, and what was answered."""
        self._unjudged: list[Asked] = []
        self._squad = Squad()
        """The state by one fold of all events, one at a time."""

    # the log --------------------------------------------------------------------------------------------

    def take(self, log: list[Recorded], append_of: list[int], now: datetime) -> None:
        """Takes the events that have been appended since."""
        for recorded in log[len(self._log) :]:
            self._take(recorded, append_of[recorded.position - 1], now)

    def _take(self, recorded: Recorded, append: int, now: datetime) -> None:
        before = self._log[-1] if self._log else None
        assert recorded.position == len(self._log) + 1
        self._versions[recorded.stream] += 1
        assert recorded.version == self._versions[recorded.stream]
        assert before is None or before.recorded_at <= recorded.recorded_at
        # The database's time, whatever the process believed; or the one before it.
        assert recorded.recorded_at <= now + timedelta(seconds=1)
        assert chain.hash_of(self._hash, recorded) == recorded.hash
        self._hash = recorded.hash
        self._log.append(recorded)
        self._appends[recorded.correlation_id].add(append)
        assert len(self._appends[recorded.correlation_id]) == 1, "a request was carried out twice"
        if recorded.type != "request_answered":
            self._last[recorded.correlation_id] = recorded
        event = codec.decode(recorded)
        self._rules.take(event, recorded)
        self._job_rules.take(event, recorded.recorded_at)
        self._get_to_know(event)
        draft = Draft(self._squad)
        draft.fold(event, recorded)
        self._squad.merge(draft)

    def _get_to_know(self, event: Event) -> None:
        for kind in (OperationStarted, TokensReserved, MessageSent, TaskCreated, EmailReceived, RunStarted):
            if isinstance(event, kind):
                field = next(field for field in strategies.ID_FIELDS if field in kind.model_fields)
                self.known[field].append(getattr(event, field))

    # the answers ----------------------------------------------------------------------------------------

    def ask(self, asked: Asked) -> None:
        """Remembers a request."""
        self.asked.append(asked)
        self._unjudged.append(asked)

    def judge_answers(self) -> None:
        """Holds what callers have been told since to the log as it is now."""
        left = []
        for asked in self._unjudged:
            if asked.promise.result is None:
                left.append(asked)
            else:
                self._judge(asked.request, asked.promise.result)
        self._unjudged = left

    def _judge(self, request: Request, result: Outcome | Exception) -> None:
        assert not isinstance(result, CommandFailed), result
        if isinstance(result, Exception):
            # Nothing was promised, or that nothing happened.
            assert isinstance(result, OutcomeUnknown | Stopping)
            return
        if result.position is not None:
            assert result.position <= len(self._log), "an answer before it was durable"
        if request.idempotency_key:
            self._judge_key(request, request.idempotency_key, result)
        own = self._last.get(request.correlation_id)
        if own is None:
            return
        assert result.position == own.position
        if isinstance(request.command, do.StartOperation) and result.refusal is None:
            started = codec.decode(own)
            assert isinstance(started, OperationStarted)
            assert result.reply["fencing_token"] == result.position
            assert started.operation_id == result.reply["id"]

    def _judge_key(self, request: Request, key: str, result: Outcome) -> None:
        was_carried_out = request.correlation_id in self._appends
        if result.refusal and result.refusal.code == "idempotency_mismatch":
            assert not was_carried_out
            return
        if result.repeated:
            assert not was_carried_out
            answer = result.repeated
        elif was_carried_out:
            assert request.answer is not None
            answer = request.answer(result)
        else:
            return
        first = self._answers.setdefault(key, (request.fingerprint, answer))
        assert first == (request.fingerprint, answer), "two answers to one key"

    # the states -----------------------------------------------------------------------------------------

    def judge_state(self, squad: Squad) -> None:
        """A state that is at the head is the fold of the log, however it came to be."""
        assert squad.head == self._squad.head
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

    def judge_partial_rows(self, squad: Squad) -> None:
        """What is in memory of tasks and e-mails is what their projections say."""
        for projection in PROJECTIONS:
            for table in projection.tables:
                if table.name in PARTIAL:
                    rows: dict[Any, Any] = fold(projection, self._log)[table.name]
                    assert squad.tables[table.name].items() <= rows.items()

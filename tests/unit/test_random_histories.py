"""The invariants of a squad hold for random commands, in any order and at any time."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from eventstore import chain, codec
from eventstore.recorded import GENESIS_HASH
from projections import PROJECTIONS
from projections.agents import AGENTS
from projections.budgets import BUDGET_DAYS, BUDGETS, RESERVATIONS
from projections.emails import EMAILS
from projections.jobs import JOBS
from projections.keys import KEYS
from projections.operations import OPERATIONS
from projections.runs import RUNS
from service.commands import (
    AnyCommand,
    ClaimTick,
    ForgetSubject,
    RegisterAgent,
    RemoveJob,
    SetPolicy,
    StartOrchestrator,
    TakeUpRun,
)
from service.decide import DecisionContext, decide
from service.decide.jobs import due_jobs
from service.memory.deadlines import NEVER
from service.memory.draft import Draft
from service.memory.residence import PARTIAL, RESIDENT
from service.memory.squad import Squad
from service.memory.state import EXPIRING
from service.requests import Answer, CommandFailed, Outcome, Request
from service.writing.batch import Batch
from service.writing.recorder import Recorder
from tests.support.randomized import examples
from tests.unit import strategies
from tests.unit.invariants import Invariants
from tests.unit.job_invariants import JobInvariants
from tests.unit.key_invariants import KeyInvariants
from tests.unit.stories import Story

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hypothesis.strategies import SearchStrategy

    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from projections.projection import Table

A_MINUTE = timedelta(minutes=1)

A_WEEK_AND_A_DAY = timedelta(days=8)
"""Longer than anything can be claimed or reserved."""

LONGEST_WAIT_SECONDS = 301.0
"""Longer than every lease and every delay before the next attempt."""


class Step(NamedTuple):
    """A command in a history."""

    command: AnyCommand
    key: str | None
    fails: bool
    """Whether it fails after it was decided."""


History = list[tuple[float, list[Step]]]
"""Pauses in seconds, each with the batch that follows."""

Encrypt = Literal["never", "always", "alternately"]
"""When payloads are encrypted. Alternately: as by processes with different settings."""

SHORT_AND_LONG = (*[0.0] * 4, 0.1, 1.0, 2.0, 9.0, 31.0, 61.0, 299.0, 700.0, 4_000.0, 90_000.0)
SHORT = (0.0, 0.5, 1.0, 2.0, 16.0, 59.0, 60.0, 61.0, 120.0, 200.0)


def histories(
    commands: SearchStrategy[AnyCommand], pauses: Sequence[float], min_batches: int = 5
) -> SearchStrategy[History]:
    """Histories of these commands, some of them with an idempotency key, some of them failing."""
    steps = st.builds(
        Step,
        command=commands,
        key=st.sampled_from((*[None] * 20, "k-1", "k-2", "k-3")),
        fails=st.sampled_from((*[False] * 11, True)),
    )
    batches = st.lists(steps, min_size=1, max_size=8)
    return st.lists(st.tuples(st.sampled_from(pauses), batches), min_size=min_batches, max_size=25)


class CheckedStory:
    """A story that grows by random batches and checks itself after each."""

    def __init__(self, encrypt: Encrypt = "never") -> None:
        self.story = Story(encrypt=encrypt == "always")
        self.alternates_encryption = encrypt == "alternately"
        self.live_tables: dict[str, dict[Any, Any]] = defaultdict(dict)
        """The read tables, folded right after each batch."""
        self.rules = Invariants()
        self.job_rules = JobInvariants()
        self.key_rules = KeyInvariants()
        self.known: dict[str, list[str]] = defaultdict(list)

    def advance(self, pause_seconds: float, batch: Sequence[Step]) -> None:
        """Let some time pass, and decide a batch."""
        for part in _split(batch):
            if self.alternates_encryption:
                self.story.encrypt = not self.story.encrypt
            self._decide(pause_seconds, part)
            pause_seconds = 0

    def _decide(self, pause_seconds: float, batch: Sequence[Step]) -> None:
        later = self.story.now + timedelta(seconds=pause_seconds)
        requests = [self._request(step) for step in batch]
        self._check_rollback([request.command for request in requests], later)
        self.story.decide(requests, later)
        for step, outcome in zip(batch, self.story.outcomes, strict=True):
            assert isinstance(outcome, Outcome) or (step.fails and isinstance(outcome, CommandFailed))
        for recorded in self.story.revealed:
            event = codec.decode(recorded)
            _project(self.live_tables, event, recorded)
            self.rules.take(event, recorded)
            self.job_rules.take(event, recorded.recorded_at)
            self.key_rules.take(event, recorded.recorded_at)
            strategies.collect_ids(event, self.known)
        self._check_squad()

    def _request(self, step: Step) -> Request:
        command = strategies.with_known_ids(step.command, self.known)

        def render(_: Outcome) -> Answer:
            if step.fails:
                raise RuntimeError("an intended failure")
            return Answer(200, {"command": type(command).__name__})

        key = step.key or ("faulty" if step.fails else None)
        return Request(command, "agent:random", "random", key, repr(command), render)

    def _check_rollback(self, commands: Iterable[AnyCommand], now: datetime) -> None:
        draft = Draft(self.story.squad)
        before = _contents(draft)
        recorder = Recorder(draft, Batch((), [], [], [], now), now, self.story.new_id)
        if self.story.squad.has_policy:
            for command in commands:
                recorder.record(
                    decide(draft, command, DecisionContext(now, self.story.new_id, "y")).events, "x", "y"
                )
        draft.roll_back()
        assert _contents(draft) == before

    def _check_squad(self) -> None:
        squad = self.story.squad
        operations, reservations = list(squad.all(OPERATIONS)), list(squad.all(RESERVATIONS))
        assert {row.id for row in operations} == self.rules.claims.keys()
        assert {row.id for row in reservations} == self.rules.held.keys()

        assert operations == sorted(operations, key=lambda row: row.fencing_token)
        holders = defaultdict(list)
        for row in operations:
            for resource in row.resources.items():
                holders[resource].append(row.id)
        assert {resource: squad.claims(resource) for resource in holders} == {
            resource: tuple(ids) for resource, ids in holders.items()
        }
        assert len(squad.holders) == len(holders)

        assert squad.gmail_ids == {row.gmail_message_id: row.id for row in squad.all(EMAILS)}

        runs = list(squad.all(RUNS))
        assert {row.id for row in runs} == self.job_rules.runs.keys()
        held = {row.operation_id for row in runs if row.runner}
        assert {row.id for row in operations if row.action in strategies.JOBS} <= held

        self.key_rules.check(squad)

        working = Counter([*(row.agent for row in operations), *(row.agent for row in runs)])
        assert {row.name: row.operations for row in squad.all(AGENTS)} == {
            row.name: working[row.name] for row in squad.all(AGENTS)
        }

        for job in squad.all(JOBS):
            assert {row.id for row in squad.runs_of(job.name)} == {
                row.id for row in runs if row.job == job.name
            }

        days = list(squad.all(BUDGET_DAYS))
        assert sum(day.closed_at is None for day in days) == 1
        for day in days:
            parts = squad.agent_budgets(day)
            assert day.used == sum(part.used for part in parts)
            assert day.reserved == sum(part.reserved for part in parts)
            assert day.reserved == sum(row.tokens for row in reservations if row.day == day.day)
            for part in parts:
                assert part.used == self.rules.used[day.day, part.agent]
        assert {part.day for part in squad.all(BUDGETS)} <= {day.day for day in days}
        assert squad.day == next(day for day in days if day.closed_at is None)
        # Also when a clock that was ahead is set back.
        for seconds in (0, 60, 0):
            self._check_deadlines(self.story.now + timedelta(seconds=seconds))

    def _check_deadlines(self, now: datetime) -> None:
        """The indexes find the same rows as a scan of the tables."""
        squad = self.story.squad
        for name in EXPIRING:
            rows = list(squad.all(RESIDENT[name].table))
            assert list(squad.expired(name, now)) == [row for row in rows if row.expires_at <= now]
            later = min((row.expires_at for row in rows if row.expires_at > now), default=NEVER)
            assert squad.first_to_expire(name, now) == later
            assert all(squad.no_expiry_before[name] <= row.expires_at for row in rows)
        for agent in squad.all(AGENTS):
            assert {row.id for row in squad.reservations_of(agent.name)} == {
                row.id for row in squad.all(RESERVATIONS) if row.agent == agent.name
            }
        free_at = {row.id: row.retry_at or row.lease_expires_at for row in squad.all(RUNS)}
        assert [row.id for row in squad.runs_in_progress.free(now)] == [
            id_ for id_, at in free_at.items() if at and at <= now
        ]
        coming = [at for at in free_at.values() if at and at > now]
        assert squad.runs_in_progress.next_free(now) == min(coming, default=NEVER)
        rest = [row for row in squad.all(AGENTS) if row.operations == 0]
        found = list(squad.silent_since(now - A_MINUTE, now - 3 * A_MINUTE))
        assert {row.name for row in found} == {
            row.name
            for row in rest
            if (row.status == "active" and row.last_active <= now - A_MINUTE)
            or (row.status == "idle" and row.last_active <= now - 3 * A_MINUTE)
        }
        assert len(found) == len({row.name for row in found})
        for status, heard_of in zip(("active", "idle"), squad.resting_agents.longest_silent(), strict=True):
            first = min((row.last_active for row in rest if row.status == status), default=NEVER)
            assert heard_of == first or first < heard_of <= self.story.now

    def check_log(self) -> None:
        """The log is gapless, in order and chained."""
        log = self.story.log
        assert [recorded.position for recorded in log] == list(range(1, len(log) + 1))
        versions = Counter[str]()
        for recorded in log:
            versions[recorded.stream] += 1
            assert recorded.version == versions[recorded.stream]
            assert recorded.caused_by is None or 0 < recorded.caused_by < recorded.position
        assert chain.verify(GENESIS_HASH, log) == log[-1].hash
        times = [recorded.recorded_at for recorded in log]
        assert times == sorted(times)

    def check_fresh_folds(self, page_events: int) -> None:
        """A new fold of the log gives the same state, whatever the size of the pages."""
        squad = self.story.squad
        log = self.story.vault.reveal(self.story.log)
        at_once = _folded(log, len(log))
        assert _memory(at_once) == _memory(squad)
        in_pages = _folded(log, page_events)
        for name, rows in in_pages.tables.items():
            if name in PARTIAL:
                assert rows.items() <= squad.tables[name].items()
            else:
                assert rows == squad.tables[name]
        assert in_pages.holders == squad.holders
        assert in_pages.versions.items() <= squad.versions.items()

    def check_read_tables(self) -> None:
        """A new fold of the log gives the same read tables, also without what was forgotten since.

        Each projection is given only the rows that it announces to read.
        """
        tables: dict[str, dict[Any, Any]] = defaultdict(dict)
        for recorded in self.story.vault.reveal(self.story.log):
            _project(tables, codec.decode(recorded), recorded)
        assert tables == self.live_tables
        for name, residence in RESIDENT.items():
            rows = {key: row for key, row in tables[name].items() if residence.is_active(row)}
            if residence.table is BUDGETS:
                days = self.story.squad.tables[BUDGET_DAYS.name]
                rows = {key: row for key, row in rows.items() if row.day in days}
            assert rows == self.story.squad.tables[name]

    def end(self) -> None:
        """Let everything end or expire; nothing of it stays in memory."""
        squad = self.story.squad
        self._claim_everything_due()
        for job in list(squad.all(JOBS)):
            self.job_rules.check_ticks(job.name, self.story.now - strategies.LONGEST_JITTER)
        self._submit(*(RemoveJob(name=job.name) for job in squad.all(JOBS)))
        self.advance(LONGEST_WAIT_SECONDS, [])
        self._claim_everything_due()
        assert not squad.tables[RUNS.name]
        self.advance(A_WEEK_AND_A_DAY.total_seconds(), [])
        assert not squad.tables[OPERATIONS.name]
        assert not squad.tables[RESERVATIONS.name]
        assert not squad.holders
        assert not squad.tables[KEYS.name]
        assert not squad.tables[BUDGETS.name]
        assert len(squad.tables[BUDGET_DAYS.name]) == 1
        open_things = sum(len(squad.tables[name]) for name in PARTIAL)
        assert len(squad.versions) <= len((*strategies.AGENTS, "orchestrator")) + open_things + 3

    def _claim_everything_due(self) -> None:
        """Do what a scheduler does. Each round records something, or the scheduler would never stop."""
        while True:
            jobs, runs, _ = due_jobs(self.story.squad, self.story.now)
            if not (jobs or runs):
                return
            self._submit(
                *(TakeUpRun(run_id=run_id, runner="process-1") for run_id in runs),
                *(ClaimTick(name=name, runner="process-1") for name in jobs),
            )
            assert self.story.recorded

    def _submit(self, *commands: AnyCommand) -> None:
        self.advance(0, [Step(command, None, fails=False) for command in commands])


def _split(batch: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Split into batches as the writer does: a command that destroys a key has a batch of its own."""
    rest: list[Step] = []
    for step in batch:
        if isinstance(step.command, ForgetSubject):
            yield rest
            yield [step]
            rest = []
        else:
            rest.append(step)
    yield rest


def _project(tables: dict[str, dict[Any, Any]], event: AnyEvent, recorded: Recorded) -> None:
    for projection in PROJECTIONS:
        view = _AnnouncedRows(tables, projection.reads(event))
        created = [
            (tables[one.table.name], key)
            for one in projection.creates.get(type(event), ())
            for key in one.keys(event)
        ]
        assert not any(key in rows for rows, key in created)
        projection.apply(view, event, recorded)
        assert all(key in rows for rows, key in created)


class _AnnouncedRows:
    """The view of a projector that has fetched only the rows that were announced."""

    def __init__(
        self, tables: dict[str, dict[Any, Any]], announced: Iterable[tuple[Table[Any, Any], Any]]
    ) -> None:
        self._tables = tables
        self._announced = {(table.name, key) for table, key in announced}

    def rows(self, table: Table[Any, Any], /) -> _AnnouncedTable:
        return _AnnouncedTable(self._tables[table.name], table.name, self._announced)


class _AnnouncedTable:
    def __init__(self, rows: dict[Any, Any], name: str, announced: set[tuple[str, Any]]) -> None:
        self._rows, self._name, self._announced = rows, name, announced

    def get(self, key: Any, /) -> Any:
        assert (self._name, key) in self._announced
        return self._rows.get(key)

    def put(self, key: Any, row: Any, /) -> None:
        self._announced.add((self._name, key))
        self._rows[key] = row


def _contents(draft: Draft) -> dict[str, Any]:
    layers = {table.name: dict(layer.changes) for table, layer in draft.layers.items() if layer.changes}
    return {
        **layers,
        "head": draft.head,
        "versions": dict(draft.versions.changes),
        "holders": dict(draft.holders.changes),
        "gmail ids": dict(draft.gmail_ids.changes),
    }


def _memory(squad: Squad) -> dict[str, Any]:
    return {
        **squad.tables,
        "head": squad.head,
        "versions": squad.versions,
        "holders": squad.holders,
        "gmail ids": squad.gmail_ids,
    }


def _folded(log: Sequence[Recorded], page_events: int) -> Squad:
    squad = Squad()
    for start in range(0, len(log), page_events):
        draft = Draft(squad)
        for recorded in log[start : start + page_events]:
            draft.fold(codec.decode(recorded), recorded)
        squad.merge(draft)
    return squad


@pytest.fixture(autouse=True, scope="module")
def _without_the_log_lines_of_intended_failures() -> Iterator[None]:
    def is_unintended(record: logging.LogRecord) -> bool:
        return record.levelno != logging.ERROR

    logger = logging.getLogger("service.writing.batch")
    logger.addFilter(is_unintended)
    yield
    logger.removeFilter(is_unintended)


@examples(50)
@for_all(
    history=histories(strategies.commands, SHORT_AND_LONG),
    policy=strategies.first_policies,
    page_events=st.integers(1, 40),
    encrypt=st.sampled_from(get_args(Encrypt)),
)
def test_invariants_hold_for_random_commands(
    history: History, policy: SetPolicy, page_events: int, encrypt: Encrypt
) -> None:
    run_history(history, [policy, StartOrchestrator()], page_events, encrypt)


@examples(50)
@for_all(
    history=histories(strategies.jobs, SHORT, min_batches=10),
    first_jobs=strategies.first_jobs,
    page_events=st.integers(1, 40),
)
def test_invariants_hold_for_random_job_commands(
    history: History, first_jobs: list[AnyCommand], page_events: int
) -> None:
    agents = [RegisterAgent(name=name, role="agent") for name in strategies.AGENTS]
    run_history(history, [SetPolicy(), StartOrchestrator(), *agents, *first_jobs], page_events)


@examples(40)
@for_all(
    history=histories(strategies.work, (0, 0, 1, 20, 31, 31, 61)),
    policy=strategies.first_policies,
    page_events=st.integers(1, 40),
)
def test_invariants_hold_for_random_claims(history: History, policy: SetPolicy, page_events: int) -> None:
    run_history(history, [policy], page_events)


@examples(40)
@for_all(
    history=histories(strategies.spending, (0, 0, 0, 1, 200, 700, 40_000)),
    policy=strategies.first_policies,
    page_events=st.integers(1, 40),
)
def test_invariants_hold_for_random_spending(history: History, policy: SetPolicy, page_events: int) -> None:
    run_history(history, [policy], page_events)


@examples(100)
@for_all(
    history=histories(strategies.correspondence, SHORT),
    page_events=st.integers(1, 40),
    encrypt=st.sampled_from(("always", "alternately")),
)
def test_invariants_hold_when_random_subjects_are_forgotten(
    history: History, page_events: int, encrypt: Encrypt
) -> None:
    run_history(history, [SetPolicy(), StartOrchestrator()], page_events, encrypt)


@examples(25)
@for_all(
    history=histories(strategies.keys, (0, 0, 0, 1, 40_000, 90_000, 650_000)),
    policy=strategies.first_policies,
    page_events=st.integers(1, 40),
)
def test_invariants_hold_for_random_changes_of_keys(
    history: History, policy: SetPolicy, page_events: int
) -> None:
    run_history(history, [policy], page_events)


def run_history(
    history: History, first: Sequence[AnyCommand], page_events: int, encrypt: Encrypt = "never"
) -> None:
    """Run a history, and check the invariants after each batch and at the end."""
    story = CheckedStory(encrypt)
    story.advance(0, [Step(command, None, fails=False) for command in first])
    for pause_seconds, batch in history:
        story.advance(pause_seconds, batch)
    story.check_log()
    story.check_fresh_folds(page_events)
    story.check_read_tables()
    story.end()

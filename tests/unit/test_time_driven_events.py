"""Time-driven events: when they are due, how batches record them, and how little is read to find them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from eventstore.events import OperationExpired
from projections.agents import AGENTS
from projections.budgets import RESERVATIONS
from projections.operations import OPERATIONS
from service.commands import (
    CreateKey,
    Heartbeat,
    PassTime,
    RegisterAgent,
    ReserveTokens,
    SetPolicy,
    StartOperation,
)
from service.decide import decide
from service.decide.clock import next_due
from service.memory.draft import Draft
from service.memory.squad import Squad
from service.requests import CommandFailed
from service.writing.batch import CLOCK_ACTOR, CLOCK_STEP, decide_batch
from tests.unit.job_stories import claim, with_job
from tests.unit.stories import Story, given, moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.memory.state import State

FEW_TOKENS = SetPolicy(daily_tokens=100)
STEP = CLOCK_STEP.total_seconds()


def start_with_ttl(ttl: float) -> StartOperation:
    return StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}, ttl_seconds=ttl)


def start_on_email(email: str) -> StartOperation:
    return StartOperation(agent="ann", action="answer", resources={"emailId": email}, ttl_seconds=60)


def reserve(tokens: int, ttl: float | None = None) -> ReserveTokens:
    return ReserveTokens(agent="ann", tokens=tokens, ttl_seconds=ttl)


def everything_due_by_midnight() -> Story:
    return given(
        RegisterAgent(name="bob", role="agent"),
        Heartbeat(agent="bob"),
        ReserveTokens(agent="ann", tokens=10, ttl_seconds=30),
        start_with_ttl(60),
    )


def test_time_driven_events_have_a_fixed_order_whichever_was_due_first() -> None:
    story = everything_due_by_midnight().when(PassTime(), at=12 * 3600)
    assert [recorded.type for recorded in story.recorded] == [
        "budget_day_reset",
        "operation_expired",
        "tokens_released",
        "agent_status_changed",
        "agent_status_changed",
    ]


def test_time_driven_events_have_the_clock_as_actor_and_one_correlation_id() -> None:
    story = everything_due_by_midnight().when(PassTime(), at=12 * 3600)
    assert {recorded.actor for recorded in story.recorded} == {CLOCK_ACTOR}
    assert len({recorded.correlation_id for recorded in story.recorded}) == 1


def test_time_driven_events_precede_the_commands_of_the_batch() -> None:
    story = given(start_with_ttl(60))
    first = story.id
    story.when(start_with_ttl(60), at=60)
    story.then_clock_recorded(OperationExpired(operation_id=first, agent="ann"))
    assert [recorded.type for recorded in story.recorded] == ["operation_expired", "operation_started"]


def test_time_is_checked_at_most_once_per_clock_step() -> None:
    story = given(start_with_ttl(1)).given(PassTime(), at=0.9)
    checked_at = story.squad.checked_at
    story.when(PassTime(), at=0.9 + STEP / 2).then_clock_recorded()
    assert story.squad.checked_at == checked_at
    story.when(PassTime(), at=0.9 + STEP)
    assert [recorded.type for recorded in story.recorded] == ["operation_expired"]


def test_day_ends_on_time_even_if_time_was_checked_just_before() -> None:
    """Tokens that are used from then on count towards the next day."""
    midnight = 12 * 3600
    story = given(PassTime(), at=midnight - STEP / 2).when(PassTime(), at=midnight)
    assert [recorded.type for recorded in story.recorded] == ["budget_day_reset"]


class TestLargeBacklog:
    """As after an outage. The database rejects a batch that took more than a second to decide."""

    @pytest.fixture(autouse=True)
    def _at_most_two_of_a_kind_per_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.writing.batch.MAX_DUE_PER_BATCH", 2)

    def test_backlog_is_spread_over_batches_without_a_pause_between_them(self) -> None:
        story = given(*(start_on_email(f"e-{n}") for n in range(5)))
        batches = []
        for _ in range(4):
            story.when(PassTime(), at=60)
            batches.append([recorded.type for recorded in story.recorded])
        assert batches == [["operation_expired"] * 2] * 2 + [["operation_expired"], []]
        assert story.squad.no_expiry_before[OPERATIONS.name] > moment(60)
        assert story.squad.checked_at == moment(60)

    def test_backlog_of_one_kind_does_not_delay_the_others(self) -> None:
        story = given(
            *(start_on_email(f"e-{n}") for n in range(5)),
            ReserveTokens(agent="ann", tokens=10, ttl_seconds=60),
        )
        story.when(PassTime(), at=60)
        assert [recorded.type for recorded in story.recorded] == [
            "operation_expired",
            "operation_expired",
            "tokens_released",
        ]

    def test_next_due_does_not_move_on_until_the_backlog_is_recorded(self) -> None:
        story = given(*(start_on_email(f"e-{n}") for n in range(5)))
        for _ in range(3):
            due = next_due(story.squad)
            assert due is not None
            assert due <= moment(60)
            story.when(PassTime(), at=60)
        due = next_due(story.squad)
        assert due is not None
        assert due > moment(60)

    def test_expired_claim_blocks_nobody_before_its_expiry_is_recorded(self) -> None:
        story = given(*(start_on_email(f"e-{n}") for n in range(5)))
        story.when(start_on_email("e-4"), at=60)
        assert story.outcome.refusal is None
        story.when(PassTime(), at=60).when(PassTime(), at=60)
        assert [row.resources for row in story.squad.all(OPERATIONS)] == [{"emailId": "e-4"}]

    def test_reservation_first_releases_all_tokens_that_have_expired(self) -> None:
        story = given(*(reserve(20, 60) for _ in range(5)), policy=FEW_TOKENS)
        story.when(reserve(90), reserve(11), at=60)
        assert [outcome.refusal is None for outcome in story.outcomes] == [True, False]  # type: ignore[union-attr]
        assert [recorded.type for recorded in story.recorded] == [
            *["tokens_released"] * 5,
            "tokens_reserved",
            "tokens_denied",
        ]

    def test_reservation_releases_no_more_than_fits_into_the_batch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.writing.batch.MAX_BATCH_EVENTS", 4)
        story = given(*(reserve(10, 60) for _ in range(9)), policy=FEW_TOKENS)
        story.when(reserve(100), at=60)
        assert [recorded.type for recorded in story.recorded] == [*["tokens_released"] * 4, "tokens_denied"]

    def test_events_are_recorded_once_while_earlier_batches_are_in_flight(self) -> None:
        story = given(
            *(start_on_email(f"e-{n}") for n in range(3)),
            *(reserve(20, 60) for _ in range(3)),
            *(
                CreateKey(key_id=id_ * 10, digest="0" * 64, scope="operator", expires_days=1)
                for id_ in "234"
            ),
            *(RegisterAgent(name=name, role="agent") for name in ("bob", "cyd", "dan")),
        )
        draft, recorded_events, now = Draft(story.squad), [], moment(86_400)
        for _ in range(5):
            batch = decide_batch(draft, [], {}, now=now, decided_at=now, ids=story.new_id)
            recorded_events += [(recorded.type, recorded.data) for recorded in batch.recorded]
            draft = Draft(draft)
        assert len(recorded_events) == len(set(recorded_events))
        assert Counter(kind for kind, _ in recorded_events) == {
            "budget_day_reset": 1,
            "operation_expired": 3,
            "tokens_released": 3,
            "key_expired": 3,
            "agent_status_changed": 4,
        }


class TestExpiredReservations:
    """Their tokens are free from the moment of expiry, whenever time was last checked."""

    def test_expired_tokens_are_available_to_a_reservation(self) -> None:
        story = given(reserve(100, 1), policy=FEW_TOKENS).given(PassTime(), at=0.9)
        story.when(reserve(100), at=0.999)
        assert story.refusal.code == "budget_exhausted"
        story.when(reserve(60), reserve(41), reserve(40), at=1)
        assert [recorded.type for recorded in story.recorded] == [
            "tokens_released",
            "tokens_reserved",
            "tokens_denied",
            "tokens_reserved",
        ]
        assert story.recorded[0].actor == CLOCK_ACTOR
        assert sum(row.tokens for row in story.squad.all(RESERVATIONS)) == 100

    def test_expired_tokens_are_available_to_a_job(self) -> None:
        story = with_job(FEW_TOKENS, tokens=100).given(reserve(100, 59.9)).given(PassTime(), at=59.8)
        story.when(claim(), at=60)
        assert [recorded.type for recorded in story.recorded[:3]] == [
            "tokens_released",
            "tokens_reserved",
            "run_started",
        ]

    def test_expired_tokens_stay_released_when_the_command_fails(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        story = given(reserve(100, 1), policy=FEW_TOKENS).given(PassTime(), at=0.9)
        answers = iter([decide])

        def fail_the_second_time(*arguments: Any) -> Any:
            return next(answers)(*arguments)

        monkeypatch.setattr("service.writing.batch.decide", fail_the_second_time)
        story.when(reserve(100), at=1)
        assert isinstance(story.outcomes[0], CommandFailed)
        assert [recorded.type for recorded in story.recorded] == ["tokens_released"]
        assert not list(story.squad.all(RESERVATIONS))


def test_pass_time_records_nothing_without_a_policy() -> None:
    Story().when(PassTime(), at=3600).then_nothing().then_clock_recorded()


def test_pass_time_records_nothing_when_nothing_is_due() -> None:
    story = given().when(PassTime(), at=1).then_nothing()
    assert story.outcome.position == story.squad.head.position


class TestNextDue:
    def test_next_due_is_none_without_a_policy(self) -> None:
        assert next_due(Squad()) is None

    def test_next_due_is_the_end_of_the_day_when_nothing_else_is_pending(self) -> None:
        assert next_due(given().squad) == datetime(2026, 3, 3, tzinfo=UTC)

    def test_next_due_is_the_earliest_deadline(self) -> None:
        story = everything_due_by_midnight()
        due = []
        for _ in range(5):
            moment_due = next_due(story.squad)
            assert moment_due is not None
            due.append(moment_due - moment(0))
            story.when(PassTime(), at=moment_due)
        assert due == [
            timedelta(seconds=30),
            timedelta(seconds=60),
            timedelta(minutes=10),
            timedelta(minutes=60),
            timedelta(hours=12),
        ]

    def test_next_due_moves_on_once_the_event_is_recorded(self) -> None:
        """Otherwise the timer would request one batch after another."""
        story = given(SetPolicy(idle_after_minutes=5), start_with_ttl(600))
        for _ in range(20):
            due = next_due(story.squad)
            assert due is not None
            story.when(PassTime(), at=due)
            following = next_due(story.squad)
            assert following is not None
            assert following > due


class TestChecking:
    """There can be many operations, so nothing is read before one may be due, and no table is scanned."""

    @pytest.fixture
    def scanned_tables(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        return spy_on(monkeypatch, "all", lambda table: table.name)

    @pytest.fixture
    def queried_tables(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        return spy_on(monkeypatch, "expired", str)

    def test_expired_rows_are_not_queried_before_something_is_due(self, queried_tables: list[str]) -> None:
        story = given(start_with_ttl(60), ReserveTokens(agent="ann", tokens=10, ttl_seconds=90))
        queried_tables.clear()
        for seconds in (1, 30, 59):
            story.when(PassTime(), at=seconds).then_clock_recorded()
        assert queried_tables == []
        story.when(PassTime(), at=60)
        assert queried_tables == [OPERATIONS.name] * 2

    def test_no_table_is_scanned_when_something_is_due(self, scanned_tables: list[str]) -> None:
        story = given(start_with_ttl(60), ReserveTokens(agent="ann", tokens=10, ttl_seconds=60))
        scanned_tables.clear()
        story.when(PassTime(), at=60)
        assert [recorded.type for recorded in story.recorded] == ["operation_expired", "tokens_released"]
        assert not {OPERATIONS.name, RESERVATIONS.name} & set(scanned_tables)

    def test_agents_that_are_offline_or_working_are_not_read(self, scanned_tables: list[str]) -> None:
        """Every name that was ever used remains an agent, so there can be many."""
        story = given(
            *(RegisterAgent(name=name, role="agent") for name in ("bob", "cyd", "dan")),
            Heartbeat(agent="bob", status="offline"),
            Heartbeat(agent="cyd"),
            start_with_ttl(60),
        )
        scanned_tables.clear()
        assert resting_agents(story.squad) == {"cyd", "dan"}
        story.when(PassTime(), at=1).then_clock_recorded()
        assert AGENTS.name not in scanned_tables
        story.when(Heartbeat(agent="bob"), at=2)
        assert resting_agents(story.squad) == resting_agents(story.squad.copy()) == {"bob", "cyd", "dan"}
        story.when(PassTime(), at=60)
        assert resting_agents(story.squad) == {"ann", "bob", "cyd", "dan"}
        story.when(PassTime(), at=3_602)
        assert resting_agents(story.squad) == set()
        loaded = Squad()
        loaded.load(
            AGENTS, given(RegisterAgent(name="eva", role="agent"), start_with_ttl(60)).squad.all(AGENTS)
        )
        assert resting_agents(loaded) == {"eva"}

    def test_silent_agents_include_the_changes_of_the_batch_in_flight(self) -> None:
        story = given(RegisterAgent(name="bob", role="agent"))
        before = Draft(story.squad)
        bob = story.row(AGENTS, "bob")
        before.layers[AGENTS].put("bob", bob.replaced(status="active"))
        before.layers[AGENTS].put("cyd", bob.replaced(name="cyd"))
        after = Draft(before)
        after.layers[AGENTS].put("cyd", bob.replaced(name="cyd", status="offline"))
        after.layers[AGENTS].put("dan", bob.replaced(name="dan"))
        assert [(row.name, row.status) for row in after.silent_since(moment(0), moment(0))] == [
            ("bob", "active"),
            ("dan", "idle"),
        ]
        assert list(after.silent_since(moment(-1), moment(-1))) == []

    def test_bound_on_the_next_expiry_moves_on_after_each_expiry(self) -> None:
        story = given(
            start_with_ttl(60),
            StartOperation(agent="bob", action="x", resources={"a": "b"}, ttl_seconds=70),
        )
        assert story.squad.no_expiry_before[OPERATIONS.name] == moment(60)
        story.when(PassTime(), at=60)
        assert story.squad.no_expiry_before[OPERATIONS.name] == moment(70)
        story.when(PassTime(), at=70)
        assert story.squad.no_expiry_before[OPERATIONS.name] > moment(10**6)

    def test_loaded_squad_knows_what_expires_and_when(self) -> None:
        loaded = Squad()
        rows = given(start_with_ttl(60)).squad.all(OPERATIONS)
        assert loaded.first_to_expire(OPERATIONS.name, moment(0)) > moment(10**6)
        loaded.load(OPERATIONS, rows)
        assert loaded.no_expiry_before[OPERATIONS.name] == moment(60)
        assert loaded.first_to_expire(OPERATIONS.name, moment(0)) == moment(60)
        assert list(loaded.expired(OPERATIONS.name, moment(60))) == list(rows)
        assert loaded.copy().no_expiry_before == loaded.no_expiry_before

    def test_loading_a_table_in_parts_does_not_scan_the_earlier_parts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claims = [
            StartOperation(agent="ann", action="x", resources={"a": str(ttl)}, ttl_seconds=ttl)
            for ttl in (70, 60, 80)
        ]
        rows = list(given(*claims).squad.all(OPERATIONS))
        monkeypatch.setattr(Squad, "all", lambda *_: pytest.fail("the table was scanned"))
        loaded = Squad()
        for row in rows:
            loaded.load(OPERATIONS, [row])
        assert loaded.no_expiry_before[OPERATIONS.name] == moment(60)
        assert loaded.no_expiry_before[RESERVATIONS.name] > moment(10**6)


def spy_on(monkeypatch: pytest.MonkeyPatch, method: str, describe: Callable[[Any], str]) -> list[str]:
    """The first arguments of all later calls of a method of squads and drafts."""
    calls: list[str] = []

    def wrap(kind: type[State]) -> None:
        original = getattr(kind, method)

        def call(self: State, argument: Any, *more: Any) -> Any:
            calls.append(describe(argument))
            return original(self, argument, *more)

        monkeypatch.setattr(kind, method, call)

    wrap(Draft)
    wrap(Squad)
    return calls


def resting_agents(squad: Squad) -> set[str]:
    return {row.name for row in squad.silent_since(moment(10**6), moment(10**6))}


def test_operations_keep_the_order_of_their_start_whatever_order_they_load_in() -> None:
    story = given(*(StartOperation(agent="ann", action="x", resources={"a": str(n)}) for n in range(3)))
    rows = list(story.squad.all(OPERATIONS))
    assert [row.resources["a"] for row in rows] == ["0", "1", "2"]
    loaded = Squad()
    loaded.load(OPERATIONS, reversed(rows))
    assert list(loaded.all(OPERATIONS)) == list(loaded.copy().all(OPERATIONS)) == rows


def test_ended_operations_are_not_loaded() -> None:
    [row] = given(start_with_ttl(60)).squad.all(OPERATIONS)
    loaded = Squad()
    loaded.load(OPERATIONS, [row.replaced(state="finished")])
    assert not list(loaded.all(OPERATIONS))
    assert loaded.claims(("emailId", "e-1")) == ()

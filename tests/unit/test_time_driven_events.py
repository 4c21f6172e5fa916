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
from tests.unit.support import Story, given, moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.memory.state import State

POOR = SetPolicy(daily_tokens=100)
STEP = CLOCK_STEP.total_seconds()


def a_claim(ttl: float) -> StartOperation:
    return StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}, ttl_seconds=ttl)


def claim_of(email: str) -> StartOperation:
    return StartOperation(agent="ann", action="answer", resources={"emailId": email}, ttl_seconds=60)


def set_aside(tokens: int, ttl: float | None = None) -> ReserveTokens:
    return ReserveTokens(agent="ann", tokens=tokens, ttl_seconds=ttl)


def everything_due_by_midnight() -> Story:
    return given(
        RegisterAgent(name="bob", role="agent"),
        Heartbeat(agent="bob"),
        ReserveTokens(agent="ann", tokens=10, ttl_seconds=30),
        a_claim(60),
    )


def test_happens_in_one_order_whatever_was_due_first() -> None:
    story = everything_due_by_midnight().when(PassTime(), at=12 * 3600)
    assert [recorded.type for recorded in story.recorded] == [
        "budget_day_reset",
        "operation_expired",
        "tokens_released",
        "agent_status_changed",
        "agent_status_changed",
    ]


def test_is_nobodys_doing() -> None:
    story = everything_due_by_midnight().when(PassTime(), at=12 * 3600)
    assert {recorded.actor for recorded in story.recorded} == {CLOCK_ACTOR}
    assert len({recorded.correlation_id for recorded in story.recorded}) == 1


def test_comes_before_the_commands_of_the_batch() -> None:
    story = given(a_claim(60))
    first = story.id
    story.when(a_claim(60), at=60)
    story.meanwhile(OperationExpired(operation_id=first, agent="ann"))
    assert [recorded.type for recorded in story.recorded] == ["operation_expired", "operation_started"]


def test_is_looked_at_every_quarter_of_a_second_at_most() -> None:
    story = given(a_claim(1)).given(PassTime(), at=0.9)
    checked_at = story.squad.checked_at
    story.when(PassTime(), at=0.9 + STEP / 2).meanwhile()
    assert story.squad.checked_at == checked_at
    story.when(PassTime(), at=0.9 + STEP)
    assert [recorded.type for recorded in story.recorded] == ["operation_expired"]


def test_ends_a_day_at_its_end_however_little_before_it_was_looked_at() -> None:
    """What is spent from then on counts on the next day."""
    midnight = 12 * 3600
    story = given(PassTime(), at=midnight - STEP / 2).when(PassTime(), at=midnight)
    assert [recorded.type for recorded in story.recorded] == ["budget_day_reset"]


class TestMuchAtOnce:
    """As after an outage. The database would turn back, again and again, what took a second to decide."""

    @pytest.fixture(autouse=True)
    def _two_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.writing.batch.MAX_DUE_PER_BATCH", 2)

    def test_happens_some_at_a_time_and_without_a_pause(self) -> None:
        story = given(*(claim_of(f"e-{n}") for n in range(5)))
        found = []
        for _ in range(4):
            story.when(PassTime(), at=60)
            found.append([recorded.type for recorded in story.recorded])
        assert found == [["operation_expired"] * 2] * 2 + [["operation_expired"], []]
        assert story.squad.no_expiry_before[OPERATIONS.name] > moment(60)
        assert story.squad.checked_at == moment(60)

    def test_of_one_kind_does_not_hold_up_the_others(self) -> None:
        story = given(
            *(claim_of(f"e-{n}") for n in range(5)), ReserveTokens(agent="ann", tokens=10, ttl_seconds=60)
        )
        story.when(PassTime(), at=60)
        assert [recorded.type for recorded in story.recorded] == [
            "operation_expired",
            "operation_expired",
            "tokens_released",
        ]

    def test_is_asked_for_again_until_all_has_happened(self) -> None:
        story = given(*(claim_of(f"e-{n}") for n in range(5)))
        for _ in range(3):
            due = next_due(story.squad)
            assert due is not None
            assert due <= moment(60)
            story.when(PassTime(), at=60)
        due = next_due(story.squad)
        assert due is not None
        assert due > moment(60)

    def test_is_in_nobodys_way_before_it_has_happened(self) -> None:
        story = given(*(claim_of(f"e-{n}") for n in range(5)))
        story.when(claim_of("e-4"), at=60)
        assert story.outcome.refusal is None
        story.when(PassTime(), at=60).when(PassTime(), at=60)
        assert [row.resources for row in story.squad.all(OPERATIONS)] == [{"emailId": "e-4"}]

    def test_holds_back_no_tokens_before_it_has_happened(self) -> None:
        story = given(*(set_aside(20, 60) for _ in range(5)), policy=POOR)
        story.when(set_aside(90), set_aside(11), at=60)
        assert [outcome.refusal is None for outcome in story.outcomes] == [True, False]  # type: ignore[union-attr]
        assert [recorded.type for recorded in story.recorded] == [
            *["tokens_released"] * 5,
            "tokens_reserved",
            "tokens_denied",
        ]

    def test_is_no_more_than_a_batch_may_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.writing.batch.MAX_BATCH_EVENTS", 4)
        story = given(*(set_aside(10, 60) for _ in range(9)), policy=POOR)
        story.when(set_aside(100), at=60)
        assert [recorded.type for recorded in story.recorded] == [*["tokens_released"] * 4, "tokens_denied"]

    def test_happens_once_also_where_the_batches_before_are_still_on_their_way(self) -> None:
        story = given(
            *(claim_of(f"e-{n}") for n in range(3)),
            *(set_aside(20, 60) for _ in range(3)),
            *(
                CreateKey(key_id=id_ * 10, digest="0" * 64, scope="operator", expires_days=1)
                for id_ in "234"
            ),
            *(RegisterAgent(name=name, role="agent") for name in ("bob", "cyd", "dan")),
        )
        draft, happened, now = Draft(story.squad), [], moment(86_400)
        for _ in range(5):
            batch = decide_batch(draft, [], {}, now=now, decided_at=now, ids=story.new_id)
            happened += [(recorded.type, recorded.data) for recorded in batch.recorded]
            draft = Draft(draft)
        assert len(happened) == len(set(happened))
        assert Counter(kind for kind, _ in happened) == {
            "budget_day_reset": 1,
            "operation_expired": 3,
            "tokens_released": 3,
            "key_expired": 3,
            "agent_status_changed": 4,
        }


class TestTokensWhoseTimeIsOver:
    """They are free from that moment on, whenever the clock was last looked at."""

    def test_are_denied_to_nobody(self) -> None:
        story = given(set_aside(100, 1), policy=POOR).given(PassTime(), at=0.9)
        story.when(set_aside(100), at=0.999)
        assert story.refusal.code == "budget_exhausted"
        story.when(set_aside(60), set_aside(41), set_aside(40), at=1)
        assert [recorded.type for recorded in story.recorded] == [
            "tokens_released",
            "tokens_reserved",
            "tokens_denied",
            "tokens_reserved",
        ]
        assert story.recorded[0].actor == CLOCK_ACTOR
        assert sum(row.tokens for row in story.squad.all(RESERVATIONS)) == 100

    def test_are_not_denied_to_a_job_either(self) -> None:
        story = with_job(POOR, tokens=100).given(set_aside(100, 59.9)).given(PassTime(), at=59.8)
        story.when(claim(), at=60)
        assert [recorded.type for recorded in story.recorded[:3]] == [
            "tokens_released",
            "tokens_reserved",
            "run_started",
        ]

    def test_stay_released_where_the_command_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        story = given(set_aside(100, 1), policy=POOR).given(PassTime(), at=0.9)
        answers = iter([decide])

        def fails_the_second_time(*arguments: Any) -> Any:
            return next(answers)(*arguments)

        monkeypatch.setattr("service.writing.batch.decide", fails_the_second_time)
        story.when(set_aside(100), at=1)
        assert isinstance(story.outcomes[0], CommandFailed)
        assert [recorded.type for recorded in story.recorded] == ["tokens_released"]
        assert not list(story.squad.all(RESERVATIONS))


def test_does_nothing_to_a_squad_without_a_policy() -> None:
    Story().when(PassTime(), at=3600).then_nothing().meanwhile()


def test_asking_for_it_records_nothing_by_itself() -> None:
    story = given().when(PassTime(), at=1).then_nothing()
    assert story.outcome.position == story.squad.head.position


class TestNextDue:
    def test_is_never_in_a_squad_without_a_policy(self) -> None:
        assert next_due(Squad()) is None

    def test_is_the_end_of_the_day_where_nothing_else_is_under_way(self) -> None:
        assert next_due(given().squad) == datetime(2026, 3, 3, tzinfo=UTC)

    def test_is_the_first_of_all_that_is_due(self) -> None:
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

    def test_is_no_longer_due_once_it_has_come(self) -> None:
        """Or the timer that waits for it would never rest."""
        story = given(SetPolicy(idle_after_minutes=5), a_claim(600))
        for _ in range(20):
            due = next_due(story.squad)
            assert due is not None
            story.when(PassTime(), at=due)
            following = next_due(story.squad)
            assert following is not None
            assert following > due


class TestLooking:
    """There can be many operations, so nothing is done before the time of one may have come."""

    @pytest.fixture
    def gone_through(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        return watched(monkeypatch, "all", lambda table: table.name)

    @pytest.fixture
    def asked_for(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        return watched(monkeypatch, "expired", str)

    def test_asks_for_nothing_before_something_is_due(self, asked_for: list[str]) -> None:
        story = given(a_claim(60), ReserveTokens(agent="ann", tokens=10, ttl_seconds=90))
        asked_for.clear()
        for seconds in (1, 30, 59):
            story.when(PassTime(), at=seconds).meanwhile()
        assert asked_for == []
        story.when(PassTime(), at=60)
        assert asked_for == [OPERATIONS.name] * 2

    def test_goes_through_nothing_where_something_is_due_either(self, gone_through: list[str]) -> None:
        story = given(a_claim(60), ReserveTokens(agent="ann", tokens=10, ttl_seconds=60))
        gone_through.clear()
        story.when(PassTime(), at=60)
        assert [recorded.type for recorded in story.recorded] == ["operation_expired", "tokens_released"]
        assert not {OPERATIONS.name, RESERVATIONS.name} & set(gone_through)

    def test_goes_through_no_agent_that_is_offline_or_at_work(self, gone_through: list[str]) -> None:
        """Every name that was ever heard of is one, for good."""
        story = given(
            *(RegisterAgent(name=name, role="agent") for name in ("bob", "cyd", "dan")),
            Heartbeat(agent="bob", status="offline"),
            Heartbeat(agent="cyd"),
            a_claim(60),
        )
        gone_through.clear()
        assert awake_in(story.squad) == {"cyd", "dan"}
        story.when(PassTime(), at=1).meanwhile()
        assert AGENTS.name not in gone_through
        story.when(Heartbeat(agent="bob"), at=2)
        assert awake_in(story.squad) == awake_in(story.squad.copy()) == {"bob", "cyd", "dan"}
        story.when(PassTime(), at=60)
        assert awake_in(story.squad) == {"ann", "bob", "cyd", "dan"}
        story.when(PassTime(), at=3_602)
        assert awake_in(story.squad) == set()
        loaded = Squad()
        loaded.load(AGENTS, given(RegisterAgent(name="eva", role="agent"), a_claim(60)).squad.all(AGENTS))
        assert awake_in(loaded) == {"eva"}

    def test_sees_the_agents_that_were_active_in_the_batch_before_which_is_still_on_its_way(self) -> None:
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

    def test_knows_afterwards_what_is_next(self) -> None:
        story = given(
            a_claim(60), StartOperation(agent="bob", action="x", resources={"a": "b"}, ttl_seconds=70)
        )
        assert story.squad.no_expiry_before[OPERATIONS.name] == moment(60)
        story.when(PassTime(), at=60)
        assert story.squad.no_expiry_before[OPERATIONS.name] == moment(70)
        story.when(PassTime(), at=70)
        assert story.squad.no_expiry_before[OPERATIONS.name] > moment(10**6)

    def test_is_right_in_a_squad_that_was_loaded(self) -> None:
        loaded = Squad()
        rows = given(a_claim(60)).squad.all(OPERATIONS)
        assert loaded.first_to_expire(OPERATIONS.name, moment(0)) > moment(10**6)
        loaded.load(OPERATIONS, rows)
        assert loaded.no_expiry_before[OPERATIONS.name] == moment(60)
        assert loaded.first_to_expire(OPERATIONS.name, moment(0)) == moment(60)
        assert list(loaded.expired(OPERATIONS.name, moment(60))) == list(rows)
        assert loaded.copy().no_expiry_before == loaded.no_expiry_before

    def test_is_told_from_each_part_of_a_table_without_going_through_those_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claims = [
            StartOperation(agent="ann", action="x", resources={"a": str(ttl)}, ttl_seconds=ttl)
            for ttl in (70, 60, 80)
        ]
        rows = list(given(*claims).squad.all(OPERATIONS))
        monkeypatch.setattr(Squad, "all", lambda *_: pytest.fail("went through all of them"))
        loaded = Squad()
        for row in rows:
            loaded.load(OPERATIONS, [row])
        assert loaded.no_expiry_before[OPERATIONS.name] == moment(60)
        assert loaded.no_expiry_before[RESERVATIONS.name] > moment(10**6)


def watched(monkeypatch: pytest.MonkeyPatch, method: str, named: Callable[[Any], str]) -> list[str]:
    """What a method of all squads and drafts is called with from now on, one after another."""
    found: list[str] = []

    def watch(kind: type[State]) -> None:
        read = getattr(kind, method)

        def call(self: State, asked: Any, *more: Any) -> Any:
            found.append(named(asked))
            return read(self, asked, *more)

        monkeypatch.setattr(kind, method, call)

    watch(Draft)
    watch(Squad)
    return found


def awake_in(squad: Squad) -> set[str]:
    return {row.name for row in squad.silent_since(moment(10**6), moment(10**6))}


def test_operations_are_kept_in_the_order_in_which_they_began_however_they_are_loaded() -> None:
    story = given(*(StartOperation(agent="ann", action="x", resources={"a": str(n)}) for n in range(3)))
    rows = list(story.squad.all(OPERATIONS))
    assert [row.resources["a"] for row in rows] == ["0", "1", "2"]
    loaded = Squad()
    loaded.load(OPERATIONS, reversed(rows))
    assert list(loaded.all(OPERATIONS)) == list(loaded.copy().all(OPERATIONS)) == rows


def test_operations_that_are_over_are_not_loaded() -> None:
    [row] = given(a_claim(60)).squad.all(OPERATIONS)
    loaded = Squad()
    loaded.load(OPERATIONS, [row.replaced(state="finished")])
    assert not list(loaded.all(OPERATIONS))
    assert loaded.claims(("emailId", "e-1")) == ()

"""Decisions about agents: registration, heartbeats, and their status as time passes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec import convert

from eventstore.events import (
    AgentHeartbeatRecorded,
    AgentProfileChanged,
    AgentRegistered,
    AgentStatusChanged,
    AnyEvent,
    MessageSent,
    OperationExpired,
    OperationFinished,
    OperationStarted,
    TokensReleased,
)
from projections.agents import AGENTS
from service.commands import (
    AcknowledgeMessage,
    AnyCommand,
    FinishOperation,
    Heartbeat,
    PassTime,
    RecordUsage,
    RegisterAgent,
    ReserveTokens,
    SendMessage,
    SetPolicy,
    StartOperation,
)
from service.decide.agents import inactive_agents
from service.memory.draft import Draft
from tests.unit.stories import FRESH, START, Story, given, moment

MINUTE = 60.0
HOUR = 60 * MINUTE

ANN = RegisterAgent(name="ann", role="support", url="https://ann.example", priority=3)
ANN_STARTS = StartOperation(
    agent="ann", action="answer", resources={"emailId": "e-1"}, ttl_seconds=2 * HOUR
)

ANN_REGISTERED = AgentRegistered(
    agent="ann",
    agent_id=FRESH,
    role="support",
    url="https://ann.example",
    priority=3,
    automatic=False,
)


def ann_changed(previous: str, status: str, reason: str) -> AgentStatusChanged:
    return convert(
        {"agent": "ann", "previous": previous, "status": status, "reason": reason}, AgentStatusChanged
    )


def active_ann() -> Story:
    return given(ANN, Heartbeat(agent="ann"))


class TestRegistering:
    def test_creates_an_agent_that_is_idle_until_it_acts(self) -> None:
        story = given().when(ANN)
        story.then(ANN_REGISTERED).then_replied(name="ann", role="support", priority=3, status="idle")
        ann = story.row(AGENTS, "ann")
        assert (ann.id, ann.status, ann.last_active) == (story.id, "idle", START)

    def test_changes_the_profile_of_a_registered_agent(self) -> None:
        story = given(ANN).when(RegisterAgent(name="ann", role="sales"), at=5)
        story.then(AgentProfileChanged(agent="ann", role="sales", url=None, priority=0))
        ann = story.row(AGENTS, "ann")
        assert (ann.role, ann.url, ann.priority) == ("sales", None, 0)

    def test_with_the_same_profile_changes_nothing(self) -> None:
        story = given(ANN)
        story.when(ANN, at=5).then_nothing().then_replied(position=story.position_of(AgentRegistered))

    def test_profile_change_is_no_activity(self) -> None:
        story = given(ANN).when(RegisterAgent(name="ann", role="sales"), at=5)
        assert story.row(AGENTS, "ann").last_active == START


class TestActingUnregistered:
    def test_registers_the_agent_before_its_action(self) -> None:
        story = given().when(SendMessage(from_agent="bob", message="hello"))
        story.then(
            AgentRegistered(
                agent="bob", agent_id=FRESH, role="unknown", url=None, priority=0, automatic=True
            ),
            MessageSent(
                message_id=FRESH, agent="bob", to_agent=None, message="hello", task_id=None, data=None
            ),
        )
        assert story.row(AGENTS, "bob").status == "active"

    def test_twice_in_one_batch_registers_once(self) -> None:
        hello = SendMessage(from_agent="bob", message="hello")
        story = given().when(hello, hello)
        assert [recorded.type for recorded in story.recorded] == [
            "agent_registered",
            "message_sent",
            "message_sent",
        ]

    def test_later_registration_keeps_the_id(self) -> None:
        story = given(SendMessage(from_agent="ann", message="hello"))
        before = story.row(AGENTS, "ann")
        story.when(ANN, at=1)
        story.then(
            AgentProfileChanged(agent="ann", role="support", url="https://ann.example", priority=3)
        ).then_replied(id=before.id)
        assert story.caused_by(AgentProfileChanged) == before.position


class TestHeartbeat:
    def test_is_refused_for_an_unknown_agent(self) -> None:
        given().when(Heartbeat(agent="nobody")).then_refused("agent_not_found")

    def test_makes_an_idle_agent_active(self) -> None:
        story = given(ANN).when(Heartbeat(agent="ann"), at=1)
        story.then(ann_changed("idle", "active", "heartbeat")).then_replied(
            status="active", last_active=story.now
        )
        assert story.caused_by(AgentStatusChanged) == story.position_of(AgentRegistered)

    def test_may_set_the_status(self) -> None:
        story = active_ann()
        story.when(Heartbeat(agent="ann", status="offline"), at=1)
        story.then(ann_changed("active", "offline", "heartbeat")).then_replied(status="offline")

    def test_is_not_recorded_soon_after_the_last_sign_of_life(self) -> None:
        story = active_ann()
        story.when(Heartbeat(agent="ann"), at=29.9)
        story.then_nothing().then_replied(last_active=START, position=story.log[-1].position)

    def test_is_recorded_half_a_minute_after_the_last_sign_of_life(self) -> None:
        story = active_ann()
        story.when(Heartbeat(agent="ann"), at=30).then(AgentHeartbeatRecorded(agent="ann"))
        assert story.row(AGENTS, "ann").last_active == moment(30)

    def test_keeps_an_agent_active_however_short_the_idle_limit_is(self) -> None:
        story = given(ANN, Heartbeat(agent="ann"), policy=SetPolicy(idle_after_minutes=0.05))
        for second in range(1, 20):
            story.when(Heartbeat(agent="ann"), at=second).then_clock_recorded()
        assert story.row(AGENTS, "ann").status == "active"

    def test_is_recorded_four_times_within_a_short_idle_limit(self) -> None:
        story = given(ANN, Heartbeat(agent="ann"), policy=SetPolicy(idle_after_minutes=1))
        story.when(Heartbeat(agent="ann"), at=14.9).then_nothing()
        story.when(Heartbeat(agent="ann"), at=15).then(AgentHeartbeatRecorded(agent="ann"))

    def test_is_activity_even_if_the_status_is_unchanged(self) -> None:
        story = given(ANN).when(Heartbeat(agent="ann", status="idle"), at=40)
        story.then(AgentHeartbeatRecorded(agent="ann"))


class TestGoingQuiet:
    def test_active_agent_is_idle_after_ten_minutes(self) -> None:
        story = active_ann()
        story.when(PassTime(), at=10 * MINUTE - 1).then_clock_recorded()
        story.when(PassTime(), at=10 * MINUTE).then_clock_recorded(
            ann_changed("active", "idle", "inactivity")
        )

    def test_idle_agent_is_offline_after_sixty_minutes_without_activity(self) -> None:
        story = active_ann().given(PassTime(), at=10 * MINUTE)
        story.when(PassTime(), at=HOUR - 1).then_clock_recorded()
        story.when(PassTime(), at=HOUR).then_clock_recorded(ann_changed("idle", "offline", "inactivity"))
        story.when(PassTime(), at=48 * HOUR)
        assert "agent_status_changed" not in {recorded.type for recorded in story.recorded}

    def test_active_agent_goes_offline_at_once_when_no_check_ran_for_an_hour(self) -> None:
        active_ann().when(PassTime(), at=HOUR).then_clock_recorded(
            ann_changed("active", "offline", "inactivity")
        )

    def test_going_quiet_is_no_activity(self) -> None:
        story = active_ann().given(PassTime(), at=10 * MINUTE).given(PassTime(), at=HOUR)
        ann = story.row(AGENTS, "ann")
        assert (ann.status, ann.last_active) == ("offline", START)

    def test_offline_agent_becomes_active_when_it_acts(self) -> None:
        story = active_ann().given(PassTime(), at=HOUR)
        story.when(RecordUsage(agent="ann", tokens=0), at=HOUR + 1)
        assert story.recorded[0].type == "agent_status_changed"
        ann = story.row(AGENTS, "ann")
        assert (ann.status, ann.last_active) == ("active", moment(HOUR + 1))

    def test_cause_is_the_last_sign_of_life(self) -> None:
        story = active_ann()
        heartbeat = story.log[-1].position
        story.when(PassTime(), at=HOUR)
        assert story.caused_by(AgentStatusChanged) == heartbeat

    def test_agent_with_an_operation_in_progress_stays_active(self) -> None:
        active_ann().given(ANN_STARTS).when(PassTime(), at=1.9 * HOUR).then_clock_recorded()

    def test_agent_goes_offline_as_soon_as_its_long_operation_expires(self) -> None:
        story = active_ann().given(ANN_STARTS)
        operation = story.id
        story.when(PassTime(), at=2 * HOUR).then_clock_recorded(
            OperationExpired(operation_id=operation, agent="ann"),
            ann_changed("active", "offline", "inactivity"),
        )
        assert story.caused_by(AgentStatusChanged) == story.position_of(OperationExpired)
        assert story.row(AGENTS, "ann").operations == 0

    def test_idle_limit_counts_from_the_end_of_an_operation(self) -> None:
        story = active_ann().given(ANN_STARTS)
        story.given(FinishOperation(operation_id=story.id, outcome="succeeded"), at=HOUR)
        story.when(PassTime(), at=HOUR + 10 * MINUTE - 1).then_clock_recorded()
        story.when(PassTime(), at=HOUR + 10 * MINUTE).then_clock_recorded(
            ann_changed("active", "idle", "inactivity")
        )

    def test_expiry_of_a_reservation_is_no_activity(self) -> None:
        story = active_ann().given(ReserveTokens(agent="ann", tokens=10, ttl_seconds=9 * MINUTE))
        story.when(PassTime(), at=9 * MINUTE)
        assert [recorded.type for recorded in story.recorded] == [TokensReleased.type]
        story.when(PassTime(), at=10 * MINUTE).then_clock_recorded(
            ann_changed("active", "idle", "inactivity")
        )

    def test_changes_by_the_batch_in_flight_are_respected(
        self,
    ) -> None:
        story = active_ann().given(RegisterAgent(name="bob", role="agent"))
        before = Draft(story.squad)
        for name, change in (("ann", {"operations": 1}), ("bob", {"status": "offline"})):
            before.layers[AGENTS].put(name, story.row(AGENTS, name).replaced(**change))
        assert list(inactive_agents(Draft(story.squad), moment(2 * HOUR)))
        assert not list(inactive_agents(Draft(before), moment(2 * HOUR)))

    def test_limits_come_from_the_policy(self) -> None:
        policy = SetPolicy(idle_after_minutes=1, offline_after_minutes=2)
        story = given(ANN, Heartbeat(agent="ann"), policy=policy)
        story.when(PassTime(), at=MINUTE).then_clock_recorded(ann_changed("active", "idle", "inactivity"))
        story.when(PassTime(), at=2 * MINUTE).then_clock_recorded(
            ann_changed("idle", "offline", "inactivity")
        )

    def test_agent_goes_offline_in_time_when_the_offline_limit_is_the_shorter_one(self) -> None:
        story = given(ANN, Heartbeat(agent="ann"), policy=SetPolicy(offline_after_minutes=5))
        story.when(PassTime(), at=5 * MINUTE - 1).then_clock_recorded()
        story.when(PassTime(), at=5 * MINUTE).then_clock_recorded(
            ann_changed("active", "offline", "inactivity")
        )

    def test_heartbeats_keep_an_agent_online_however_short_the_limit_is(self) -> None:
        story = given(ANN, policy=SetPolicy(offline_after_minutes=0.3))
        for seconds in range(0, 60, 5):
            story.when(Heartbeat(agent="ann", status="idle"), at=seconds).then_clock_recorded()


class TestWorking:
    def test_makes_an_idle_agent_active_and_records_why(self) -> None:
        story = given(ANN).when(ANN_STARTS, at=1)
        started = OperationStarted(
            operation_id=FRESH,
            agent="ann",
            action="answer",
            resources={"emailId": "e-1"},
            ttl_seconds=2 * HOUR,
            blocks_until=moment(31),
            expires_at=moment(1 + 2 * HOUR),
        )
        story.then(ann_changed("idle", "active", "operation_started"), started)
        assert story.caused_by(AgentStatusChanged) == story.position_of(AgentRegistered)

    def test_counts_the_operations_in_progress(self) -> None:
        story = given(ANN_STARTS)
        first = story.id
        story.given(ANN_STARTS.model_copy(update={"resources": {"emailId": "e-2"}}))
        assert story.row(AGENTS, "ann").operations == 2
        story.when(FinishOperation(operation_id=first, outcome="failed"), at=1)
        story.then(OperationFinished(operation_id=first, agent="ann", outcome="failed", tokens_used=None))
        assert story.row(AGENTS, "ann").operations == 1


@pytest.mark.parametrize(
    "action",
    [
        Heartbeat(agent="ann"),
        SendMessage(from_agent="ann", message="hello"),
        ANN_STARTS,
        ReserveTokens(agent="ann", tokens=1),
        RecordUsage(agent="ann", tokens=1),
        ReserveTokens(agent="ann", tokens=10**9),
    ],
    ids=lambda action: type(action).__name__,
)
def test_every_action_of_an_agent_is_activity(action: AnyCommand) -> None:
    story = active_ann().when(action, at=100)
    assert story.row(AGENTS, "ann").last_active == START + timedelta(seconds=100)


def test_acknowledging_a_message_is_activity_and_receiving_one_is_not() -> None:
    story = active_ann().given(SendMessage(from_agent="bob", to_agent="ann", message="hello"), at=50)
    assert story.row(AGENTS, "ann").last_active == START
    story.when(AcknowledgeMessage(message_id=story.id, agent="ann"), at=60)
    assert story.row(AGENTS, "ann").last_active == moment(60)


def test_refused_claim_is_activity_of_the_agent_that_made_it() -> None:
    story = given(ANN_STARTS).given(Heartbeat(agent="ann", status="idle"))
    claim = StartOperation(agent="bob", action="answer", resources={"emailId": "e-1"})
    story.when(claim, at=20)
    assert story.refusal.code == "conflict"
    assert story.row(AGENTS, "bob").last_active == moment(20)
    assert story.row(AGENTS, "ann").last_active == START


def test_events_of_an_agent_are_in_its_stream() -> None:
    changed: AnyEvent = ann_changed("idle", "active", "heartbeat")
    assert changed.stream == "agent-ann"

"""What counts as an agent's activity: what it does itself, and not what is done on its behalf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from eventstore.events import AgentStatusChanged
from projections.agents import AGENTS
from projections.runs import RUNS, run_id
from service.commands import (
    EndAttempt,
    Heartbeat,
    PassTime,
    RecordUsage,
    RenewOperation,
    ReserveTokens,
    RunJob,
    SendMessage,
    SetPolicy,
    StartOperation,
)
from service.requests import Request
from service.scheduling.work import ACTOR as SCHEDULER
from tests.unit.job_stories import JOB, RUNNER, claim, end_attempt, take_up, with_job
from tests.unit.stories import START, Story, moment

if TYPE_CHECKING:
    from datetime import datetime

    from service.commands import AnyCommand

MINUTE = 60
HOUR = 60 * MINUTE
RUN = run_id(JOB, moment(60))


def on_behalf(command: AnyCommand, actor: str = SCHEDULER) -> Request:
    """A command that a part of the service sends in the name of an agent."""
    return Request(command, actor, "a run")


def last_active(story: Story) -> datetime:
    return story.row(AGENTS, "ann").last_active


def status(story: Story) -> str:
    return story.row(AGENTS, "ann").status


def call_every_ten_seconds(story: Story, until: int, *, succeeds: bool, **fields: Any) -> list[str]:
    """Run the job every ten seconds, for a second each; return the agent's status after each run."""
    statuses = []
    for tick in range(10, until + 1, 10):
        story.given(claim(), at=tick)
        for row in list(story.squad.all(RUNS)):
            story.given(end_attempt(row.id, succeeded=succeeds, **fields), at=tick + 1)
        statuses.append(status(story))
    return statuses


def story_of_frequent_calls(policy: SetPolicy | None = None, **fields: Any) -> Story:
    return with_job(policy, cron=None, every_seconds=10.0, **fields)


@pytest.mark.parametrize(
    "fields",
    [{}, {"tokens": 5}, {"resources": {"mailbox": "info"}}],
    ids=["plain", "with tokens", "with a claim"],
)
class TestUnresponsiveAgent:
    def test_unresponsive_agent_goes_offline_however_often_it_is_called(self, fields: Any) -> None:
        story = story_of_frequent_calls(**fields)
        statuses = call_every_ten_seconds(story, HOUR + 10 * MINUTE, succeeds=False)
        before = len(range(10, HOUR - 1, 10))
        assert set(statuses[:before]) == {"idle"}
        assert set(statuses[before:]) == {"offline"}
        assert last_active(story) == START

    def test_unresponsive_agent_is_offline_again_as_soon_as_a_run_ends(self, fields: Any) -> None:
        story = story_of_frequent_calls(**fields)
        call_every_ten_seconds(story, HOUR + MINUTE, succeeds=False)
        story.given(claim(), at=HOUR + MINUTE + 10)
        assert status(story) == "active"
        [row] = story.squad.all(RUNS)
        story.when(end_attempt(row.id, succeeded=False), at=HOUR + MINUTE + 11)
        assert [event for event in story.events if isinstance(event, AgentStatusChanged)][-1] == (
            AgentStatusChanged(agent="ann", previous="active", status="offline", reason="run_ended")
        )
        story.when(PassTime(), at=HOUR + MINUTE + 12).then_clock_recorded()

    def test_agent_is_idle_again_after_its_first_answer(self, fields: Any) -> None:
        story = story_of_frequent_calls(**fields)
        call_every_ten_seconds(story, 2 * HOUR, succeeds=False)
        assert status(story) == "offline"
        story.given(claim(), at=2 * HOUR + 10)
        [row] = story.squad.all(RUNS)
        story.given(end_attempt(row.id), at=2 * HOUR + 11)
        assert (status(story), last_active(story)) == ("idle", moment(2 * HOUR + 11))


def test_agent_that_answers_never_goes_offline() -> None:
    story = story_of_frequent_calls()
    assert set(call_every_ten_seconds(story, 2 * HOUR, succeeds=True)) == {"idle"}


def test_run_that_called_nobody_does_not_count_as_activity() -> None:
    """For example, a run that classifies e-mails and finds none."""
    story = story_of_frequent_calls()
    statuses = call_every_ten_seconds(story, HOUR + MINUTE, succeeds=True, answered=False)
    assert statuses[-1] == "offline"
    assert last_active(story) == START


def test_agent_that_sends_heartbeats_stays_idle_although_its_runs_fail() -> None:
    story = story_of_frequent_calls()
    for minutes in range(1, 90):
        story.given(claim(), Heartbeat(agent="ann"), at=minutes * MINUTE)
        [row] = story.squad.all(RUNS)
        story.given(end_attempt(row.id, succeeded=False), at=minutes * MINUTE + 1)
        assert status(story) == "idle"


@pytest.mark.parametrize("actor", ["system:scheduler", "system:service", "cli:ada"])
@pytest.mark.parametrize(
    "command",
    [
        SendMessage(from_agent="ann", message="hello"),
        StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}),
        StartOperation(agent="ann", action="answer", resources={"emailId": "taken"}),
        ReserveTokens(agent="ann", tokens=1),
        ReserveTokens(agent="ann", tokens=10**9),
        RecordUsage(agent="ann", tokens=1),
    ],
    ids=lambda command: type(command).__name__ if not isinstance(command, str) else command,
)
def test_command_on_behalf_of_an_agent_does_not_count_as_its_activity(
    command: AnyCommand, actor: str
) -> None:
    story = with_job().given(StartOperation(agent="bob", action="x", resources={"emailId": "taken"}))
    story.when(on_behalf(command, actor), at=20)
    assert last_active(story) == START


def test_renewal_on_behalf_of_an_agent_does_not_count_as_its_activity() -> None:
    story = with_job()
    story.when(on_behalf(StartOperation(agent="ann", action="x", resources={"emailId": "e-1"})), at=1)
    story.when(on_behalf(RenewOperation(operation_id=story.id)), at=20)
    assert last_active(story) == START


def test_message_of_the_orchestrator_counts_as_its_activity() -> None:
    story = with_job()
    report = SendMessage(from_agent="orchestrator", message="all is well")
    story.when(on_behalf(report), at=20)
    assert story.row(AGENTS, "orchestrator").last_active == moment(20)


@pytest.mark.parametrize("actor", ["cli:ada", "anonymous", "agent:bob", "agent:ann"])
@pytest.mark.parametrize("runner", [RUNNER, None])
def test_requested_run_does_not_count_as_activity_of_its_agent(actor: str, runner: str | None) -> None:
    story = with_job(tokens=5, resources={"mailbox": "info"})
    story.when(on_behalf(RunJob(name=JOB, runner=runner), actor), at=20)
    [row] = story.squad.all(RUNS)
    story.when(take_up(row.id, RUNNER), at=21)
    assert (status(story), last_active(story)) == ("active", START)
    story.when(EndAttempt(run_id=row.id, runner=RUNNER, attempt=1, succeeded=False, report="no"), at=22)
    assert (status(story), last_active(story)) == ("idle", START)


def test_agent_of_a_lost_run_becomes_offline_after_a_long_silence() -> None:
    story = with_job(SetPolicy(idle_after_minutes=0.1, offline_after_minutes=1)).given(claim(), at=60)
    story.when(take_up(RUN), at=75)
    assert story.events[-1] == AgentStatusChanged(
        agent="ann", previous="active", status="offline", reason="run_ended"
    )

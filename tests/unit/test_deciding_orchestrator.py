"""Decisions about starting and stopping the orchestrator."""

from __future__ import annotations

from eventstore.events import OrchestratorStarted, OrchestratorStopped
from service.commands import StartOrchestrator, StopOrchestrator
from tests.unit.stories import START, given, moment


def test_orchestrator_of_a_new_squad_has_no_state() -> None:
    assert given().squad.orchestrator is None


def test_start_is_recorded() -> None:
    story = given().when(StartOrchestrator(), at=1)
    story.then(OrchestratorStarted()).then_replied(running=True, started_at=moment(1))
    row = story.squad.orchestrator
    assert row is not None
    assert (row.running, row.started_at, row.stopped_at) == (True, moment(1), None)


def test_start_of_a_running_orchestrator_changes_nothing() -> None:
    story = given(StartOrchestrator()).when(StartOrchestrator(), at=9)
    story.then_nothing().then_replied(
        running=True, started_at=START, position=story.position_of(OrchestratorStarted)
    )


def test_stop_is_recorded_and_keeps_the_start_time() -> None:
    story = given(StartOrchestrator()).when(StopOrchestrator(), at=5)
    story.then(OrchestratorStopped()).then_replied(running=False)
    row = story.squad.orchestrator
    assert row is not None
    assert (row.running, row.started_at, row.stopped_at) == (False, START, moment(5))


def test_stop_of_a_stopped_orchestrator_changes_nothing() -> None:
    story = given(StopOrchestrator()).when(StopOrchestrator(), at=9)
    story.then_nothing().then_replied(running=False, position=story.position_of(OrchestratorStopped))


def test_start_after_a_stop_is_recorded_with_the_stop_as_its_cause() -> None:
    story = given(StartOrchestrator(), StopOrchestrator()).when(StartOrchestrator(), at=5)
    story.then(OrchestratorStarted())
    assert story.caused_by(OrchestratorStarted) == story.position_of(OrchestratorStopped)


def test_service_start_does_not_undo_a_shutdown() -> None:
    story = given(StopOrchestrator()).when(StartOrchestrator(only_if_new=True), at=5)
    story.then_nothing().then_replied(running=False)


def test_first_service_start_starts_the_orchestrator() -> None:
    given().when(StartOrchestrator(only_if_new=True)).then(OrchestratorStarted())

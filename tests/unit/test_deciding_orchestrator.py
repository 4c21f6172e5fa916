from __future__ import annotations

from eventstore.events import OrchestratorStarted, OrchestratorStopped
from service.commands import StartOrchestrator, StopOrchestrator
from tests.unit.support import START, given, moment


def test_a_new_squad_has_an_orchestrator_that_was_never_started() -> None:
    assert given().squad.orchestrator is None


def test_starting_starts_it() -> None:
    story = given().when(StartOrchestrator(), at=1)
    story.then(OrchestratorStarted()).replied(running=True, started_at=moment(1))
    row = story.squad.orchestrator
    assert row is not None
    assert (row.running, row.started_at, row.stopped_at) == (True, moment(1), None)


def test_starting_one_that_runs_changes_nothing() -> None:
    story = given(StartOrchestrator()).when(StartOrchestrator(), at=9)
    story.then_nothing().replied(
        running=True, started_at=START, position=story.position_of(OrchestratorStarted)
    )


def test_stopping_stops_it_and_remembers_since_when_it_had_run() -> None:
    story = given(StartOrchestrator()).when(StopOrchestrator(), at=5)
    story.then(OrchestratorStopped()).replied(running=False)
    row = story.squad.orchestrator
    assert row is not None
    assert (row.running, row.started_at, row.stopped_at) == (False, START, moment(5))


def test_stopping_one_that_is_down_changes_nothing() -> None:
    story = given(StopOrchestrator()).when(StopOrchestrator(), at=9)
    story.then_nothing().replied(running=False, position=story.position_of(OrchestratorStopped))


def test_starting_it_again_after_a_stop_starts_it() -> None:
    story = given(StartOrchestrator(), StopOrchestrator()).when(StartOrchestrator(), at=5)
    story.then(OrchestratorStarted())
    assert story.caused_by(OrchestratorStarted) == story.position_of(OrchestratorStopped)


def test_a_service_that_starts_does_not_undo_a_shutdown() -> None:
    story = given(StopOrchestrator()).when(StartOrchestrator(only_if_new=True), at=5)
    story.then_nothing().replied(running=False)


def test_a_service_that_starts_for_the_first_time_starts_it() -> None:
    given().when(StartOrchestrator(only_if_new=True)).then(OrchestratorStarted())

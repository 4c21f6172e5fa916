"""However processes, network and database fail each other, the laws hold: in 10,000 steps and more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import World
from tests.model.process import simulated
from tests.model.server import Simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.model.server import Server

START = datetime(2026, 3, 28, 22, tzinfo=UTC)
"""Two hours before a budget day begins."""

LEAST_STEPS = 10_000


class InMemory(World):
    """A world whose server is a list."""

    def new_server(self) -> Server:
        """An empty one."""
        return Simulated(START)


@pytest.fixture(autouse=True)
def _processes_that_can_be_stopped() -> Iterator[None]:
    with simulated():
        yield


def lived(world: type[World], examples: int, steps: int) -> int:
    """Lives through so many examples of so many steps; how many steps that came to."""
    world.steps = 0
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(world, settings=chosen)
    return world.steps


def test_whatever_happens_between_processes_and_their_database_the_laws_hold() -> None:
    assert lived(InMemory, examples=400, steps=100) >= LEAST_STEPS


def test_on_postgres_they_hold_as_well(new_database: Callable[[], Server]) -> None:
    """The same world, in which every word is said to a real server."""

    class Real(World):
        def new_server(self) -> Server:
            return new_database()

    assert lived(Real, examples=25, steps=40) > 500

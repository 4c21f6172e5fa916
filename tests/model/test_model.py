"""However processes, network and database fail, the laws hold: checked in more than 10,000 steps.

The steps are the same in every run. `make test ARGS="tests/model"` with `SQUAD_MODEL_EXAMPLES=5000` in the
environment runs that many random examples instead: about 50 steps each, and about 12 examples a second.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import World
from tests.model.memory import InMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.model.server import Server

START = datetime(2026, 3, 28, 22, tzinfo=UTC)
"""Two hours before a budget day begins."""

LEAST_STEPS = 10_000
EXAMPLES, EXAMPLES_ON_POSTGRES = 260, 15
AT_RANDOM = os.environ.get("SQUAD_MODEL_EXAMPLES")


class SimulatedState(World):
    """A world with an in-memory server."""

    def new_server(self) -> Server:
        """Return an empty server."""
        return InMemory(START)


def story_of(world: type[World], examples: int, steps: int, phases: Sequence[Phase] = tuple(Phase)) -> int:
    """Run a number of examples of at most `steps` steps; return the number of steps run."""
    world.steps = 0
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=not AT_RANDOM,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(world, settings=chosen)
    return world.steps


def test_whatever_happens_between_processes_and_their_database_the_laws_hold() -> None:
    assert story_of(SimulatedState, examples=int(AT_RANDOM or EXAMPLES), steps=50) >= LEAST_STEPS


def test_on_postgres_they_hold_as_well(new_database: Callable[[], Server]) -> None:
    """The same world, with every statement sent to a real server."""

    class Real(World):
        def new_server(self) -> Server:
            return new_database()

    assert story_of(Real, examples=EXAMPLES_ON_POSTGRES, steps=40) >= 300

"""The laws hold when processes, network and database fail, as checked in more than 10,000 random steps.

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

MIN_STEPS = 10_000
EXAMPLES, EXAMPLES_ON_POSTGRES = 260, 15
RANDOM_EXAMPLES = os.environ.get("SQUAD_MODEL_EXAMPLES")


class SimulatedState(World):
    """A world with an in-memory server."""

    def new_server(self) -> Server:
        """Return an empty server."""
        return InMemory(START)


def run_examples(
    world: type[World], examples: int, steps: int, phases: Sequence[Phase] = tuple(Phase)
) -> int:
    """Run a number of examples of at most `steps` steps; return the number of steps run."""
    world.steps = 0
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=not RANDOM_EXAMPLES,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(world, settings=chosen)
    return world.steps


def test_laws_hold_despite_simulated_failures_on_an_in_memory_database() -> None:
    assert run_examples(SimulatedState, examples=int(RANDOM_EXAMPLES or EXAMPLES), steps=50) >= MIN_STEPS


def test_laws_hold_despite_simulated_failures_on_postgres(new_database: Callable[[], Server]) -> None:
    """Every statement is sent to a real server."""

    class Real(World):
        def new_server(self) -> Server:
            return new_database()

    assert run_examples(Real, examples=EXAMPLES_ON_POSTGRES, steps=40) >= 300

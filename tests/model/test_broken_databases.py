"""The model can fail: it detects a database that breaks a promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase

from tests.model.memory import InMemory
from tests.model.test_model import START, SimulatedState, story_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded
    from tests.model.server import Server


class _TakesAnything(InMemory):
    """Appends at any head, not only at the one that was decided on."""

    def _is_the_head(self, expected: int) -> bool:
        del expected
        return True


class _Forgets(InMemory):
    """Answers before a batch is durable, and sometimes loses one."""

    def _keep(self, batch: Sequence[Recorded]) -> None:
        if len(self.log) % 5 != 4:
            super()._keep(batch)


@pytest.mark.parametrize("kind", [_TakesAnything, _Forgets])
def test_a_database_that_breaks_a_promise_is_found_out(kind: type[InMemory]) -> None:
    class Broken(SimulatedState):
        def new_server(self) -> Server:
            return kind(START)

    with pytest.raises(AssertionError):
        story_of(Broken, examples=100, steps=50, phases=[Phase.generate])

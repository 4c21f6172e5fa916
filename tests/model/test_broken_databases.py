"""The model detects databases that break a promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase

from tests.model.memory import InMemory
from tests.model.test_model import START, SimulatedState, run_examples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded
    from tests.model.server import Server


class _IgnoresTheHead(InMemory):
    """Appends even if the head has moved."""

    def _is_the_head(self, expected: int) -> bool:
        del expected
        return True


class _LosesBatches(InMemory):
    """Acknowledges some batches without storing them."""

    def _append_to_log(self, batch: Sequence[Recorded]) -> None:
        if len(self.log) % 5 != 4:
            super()._append_to_log(batch)


@pytest.mark.parametrize("kind", [_IgnoresTheHead, _LosesBatches])
def test_database_that_breaks_a_promise_is_detected(kind: type[InMemory]) -> None:
    class Broken(SimulatedState):
        def new_server(self) -> Server:
            return kind(START)

    with pytest.raises(AssertionError):
        run_examples(Broken, examples=100, steps=50, phases=[Phase.generate])

"""What is asked of the processes of the model, and what else is drawn at random there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from projections import PROJECTIONS
from service.commands import AnyCommand
from tests.unit import strategies

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

PROCESSES = 3


class Wish(NamedTuple):
    """A command for one of the processes."""

    which: int
    command: AnyCommand
    key: str | None = None
    patience_seconds: float = 20.0


a_projection = st.integers(0, len(PROJECTIONS) - 1)
a_process = st.integers(0, PROCESSES - 1)
arrivals = st.sampled_from(("never", "now", "later"))
"""What becomes of a request whose line breaks."""
mishaps = st.sampled_from(
    (
        "its line breaks",
        "its line breaks",
        "it cannot connect, or can again",
        "its session is ended",
        "a request is refused",
        "it wakes up before the answer is there",
        "something that was late arrives",
        "the server notices who has gone",
    )
)
pauses = st.sampled_from((0.01, 0.3, 2.0, 6.0, 11.0, 31.0, 61.0, 301.0, 700.0))
steps_of_clocks = st.sampled_from((0.4, 1.5, 90.0, 4_000.0, -0.4, -1.5, -90.0))
turns_of_processes = st.lists(a_process, min_size=3, max_size=40)
encryption = st.sampled_from(((False,) * PROCESSES, (True,) * PROCESSES, (True, True, False)))
_commands: SearchStrategy[AnyCommand] = st.one_of(
    strategies.commands, strategies.work, strategies.spending, strategies.jobs, strategies.correspondence
)
wish = st.builds(
    Wish,
    which=a_process,
    command=_commands,
    key=st.sampled_from((*[None] * 9, "k-1", "k-2", "k-3")),
    patience_seconds=st.sampled_from((20.0, 20.0, 20.0, 1.0)),
)
wishes: SearchStrategy[list[Wish]] = st.lists(wish, min_size=2, max_size=10)

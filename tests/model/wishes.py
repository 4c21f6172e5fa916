"""What is asked of the processes of the simulation, and what else is drawn at random there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

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


a_process = st.integers(0, PROCESSES - 1)
arrivals = st.sampled_from(("never", "now", "later"))
"""What becomes of a request whose line breaks."""
pauses = st.sampled_from((0.01, 0.3, 2.0, 6.0, 31.0, 61.0, 301.0, 700.0))
turns_of_processes = st.lists(a_process, min_size=3, max_size=40)
wishes_of_clients: SearchStrategy[list[Wish]] = st.lists(
    st.builds(
        Wish,
        which=a_process,
        command=st.one_of(
            strategies.commands, strategies.work, strategies.spending, strategies.jobs, strategies.commands
        ),
        key=st.sampled_from((*[None] * 9, "k-1", "k-2", "k-3")),
    ),
    min_size=1,
    max_size=8,
)

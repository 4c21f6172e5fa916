"""Strategies for the requests to the model's processes, and for everything else that is random."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from projections import PROJECTIONS
from service import commands as do
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
    timeout_seconds: float = 20.0


a_projection = st.integers(0, len(PROJECTIONS) - 1)
a_process = st.integers(0, PROCESSES - 1)
arrivals = st.sampled_from(("never", "now", "later"))
"""When a request arrives whose connection breaks."""
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
words_after_a_loss = st.sampled_from((0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 9, 12))
"""After eight words a process has learned the outcome of its commit, and has not repeated it yet."""
first_policies = st.builds(
    do.SetPolicy,
    daily_tokens=st.sampled_from((300, 1000)),
    agent_limits=st.sampled_from((None, {"ann": 200}, {"ann": 600, "bob": 0})),
)
THEMES: dict[str, SearchStrategy[AnyCommand]] = {
    "everything": strategies.commands,
    "work": strategies.work,
    "spending": strategies.spending,
    "jobs": strategies.jobs,
    "correspondence": strategies.correspondence,
    "a bit of each": st.one_of(
        strategies.commands,
        strategies.work,
        strategies.spending,
        strategies.jobs,
        strategies.correspondence,
    ),
}
"""The kinds of requests in one world: the fewer kinds, the more requests conflict."""


def _about(commands: SearchStrategy[AnyCommand]) -> SearchStrategy[Wish]:
    return st.builds(
        Wish,
        which=a_process,
        command=commands,
        key=st.sampled_from((*[None] * 9, "k-1", "k-2", "k-3")),
        timeout_seconds=st.sampled_from((20.0, 20.0, 20.0, 1.0)),
    )


_ONE = {theme: _about(commands) for theme, commands in THEMES.items()}
_SEVERAL = {theme: st.lists(one, min_size=2, max_size=10) for theme, one in _ONE.items()}
wish: SearchStrategy[Wish] = st.runner().flatmap(lambda world: _ONE[world.theme])
wishes: SearchStrategy[list[Wish]] = st.runner().flatmap(lambda world: _SEVERAL[world.theme])

"""Strategies for the requests to the model's processes and for all other random choices."""

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


class ClientRequest(NamedTuple):
    """A command for one of the processes."""

    target: int
    command: AnyCommand
    key: str | None = None
    timeout_seconds: float = 20.0


a_projection = st.integers(0, len(PROJECTIONS) - 1)
a_process = st.integers(0, PROCESSES - 1)
arrivals = st.sampled_from(("never", "now", "later"))
"""When a statement arrives whose connection breaks."""
mishaps = st.sampled_from(
    (
        "its connection breaks",
        "its connection breaks",
        "it loses or regains the network",
        "its session is ended",
        "a request is refused",
        "it wakes up before it is answered",
        "a late statement arrives",
        "the server detects disconnects",
    )
)
pauses = st.sampled_from((0.01, 0.3, 2.0, 6.0, 11.0, 31.0, 61.0, 301.0, 700.0))
steps_of_clocks = st.sampled_from((0.4, 1.5, 90.0, 4_000.0, -0.4, -1.5, -90.0))
orders_of_processes = st.lists(a_process, min_size=3, max_size=40)
encryption = st.sampled_from(((False,) * PROCESSES, (True,) * PROCESSES, (True, True, False)))
turns_after_a_loss = st.sampled_from((0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 9, 12))
"""After eight turns, a process has learned the outcome of its commit and has not repeated it yet."""
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


def _requests_for(commands: SearchStrategy[AnyCommand]) -> SearchStrategy[ClientRequest]:
    return st.builds(
        ClientRequest,
        target=a_process,
        command=commands,
        key=st.sampled_from((*[None] * 9, "k-1", "k-2", "k-3")),
        timeout_seconds=st.sampled_from((20.0, 20.0, 20.0, 1.0)),
    )


_SINGLE = {theme: _requests_for(commands) for theme, commands in THEMES.items()}
_SEVERAL = {theme: st.lists(one, min_size=2, max_size=10) for theme, one in _SINGLE.items()}
request: SearchStrategy[ClientRequest] = st.runner().flatmap(lambda world: _SINGLE[world.theme])
requests: SearchStrategy[list[ClientRequest]] = st.runner().flatmap(lambda world: _SEVERAL[world.theme])

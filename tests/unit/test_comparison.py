"""How close a comparison gets to the tables before its snapshot, and how long it waits for an erasure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import log
from projections import comparison as module
from projections.agents import agents
from projections.messages import messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class StubRefold:
    """A fold from zero that only records how far it was to go."""

    reader = None

    def __init__(self) -> None:
        self.projections = {"agents": agents, "messages": messages}
        self.positions = {"agents": 0, "messages": 0}
        self.folded: list[Mapping[str, int]] = []
        self.connection = self

    async def execute(self, _: object) -> None: ...

    async def analyze(self) -> None: ...

    def tables(self) -> list[Any]:
        return []

    async def fold_to(self, targets: Mapping[str, int]) -> None:
        self.positions |= targets
        self.folded.append(targets)


async def catch_up(
    monkeypatch: pytest.MonkeyPatch, states: Iterator[Mapping[str, int]], *, end: int, version: int
) -> list[Mapping[str, int]]:
    """Return where a refold stops on its way to advancing tables. Messages were folded by this version."""
    versions = {"agents": agents.fold_version, "messages": version}

    async def read_states(*_: object) -> Any:
        return {
            name: SimpleNamespace(position=position, fold_version=versions[name])
            for name, position in next(states).items()
        }

    async def head_position(_: object) -> int:
        return end

    monkeypatch.setattr(module, "_read_states", read_states)
    monkeypatch.setattr(log, "head_position", head_position)
    refold: Any = StubRefold()
    await module._catch_up(refold, "squad")
    return list(refold.folded)


async def test_catching_up_continues_while_it_gets_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [{"agents": at, "messages": at - 5} for at in (1_000, 1_100, 1_120, 1_140)]
    folded = await catch_up(monkeypatch, iter(states), end=2_000, version=messages.fold_version)
    assert folded == states[:3]


async def test_catching_up_stops_when_it_has_reached_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [{"agents": 1_000, "messages": 900}] * 2
    folded = await catch_up(monkeypatch, iter(states), end=2_000, version=messages.fold_version)
    assert folded == states[:1]


async def test_catching_up_ignores_what_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what other code folded, and positions beyond the end of the log."""
    states = [{"agents": 2_500, "messages": 900}] * 2
    folded = await catch_up(monkeypatch, iter(states), end=2_000, version=messages.fold_version + 1)
    assert folded == [{"agents": 2_000}]


def test_timeout_begins_anew_when_a_projection_has_reached_an_erasure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, deadlines = 0.0, module._ErasureDeadlines()
    monkeypatch.setattr(module, "monotonic", lambda: now)
    assert deadlines.has_time("messages", 5, forgotten=9)
    now += module.ERASURE_TIMEOUT_SECONDS - 1
    assert deadlines.has_time("messages", 8, forgotten=12)
    now += 1
    assert not deadlines.has_time("messages", 8, forgotten=12)
    assert deadlines.has_time("emails", 8, forgotten=12)
    assert deadlines.has_time("messages", 9, forgotten=12)
    now += module.ERASURE_TIMEOUT_SECONDS
    assert not deadlines.has_time("messages", 11, forgotten=15)
    assert deadlines.has_time("messages", 12, forgotten=15)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ({"agents": 8, "messages": 9}, {"agents", "messages"}),
        ({"agents": 9, "messages": 8}, {"agents"}),
    ],
    ids=["reached", "not yet reached"],
)
async def test_only_projections_with_personal_data_must_reach_an_erasure_first(
    monkeypatch: pytest.MonkeyPatch, at: Mapping[str, int], expected: set[str]
) -> None:
    compared_projections: set[str] = set()

    async def read_states(*_: object) -> Any:
        versions = {"agents": agents.fold_version, "messages": messages.fold_version}
        return {name: module._ProjectionState(at[name], versions[name], None, None) for name in at}

    async def forgotten_at(*_: object) -> int:
        return 9

    async def no_differences(*_: object) -> dict[str, str]:
        return {}

    async def compare_table(*arguments: Any) -> list[Any]:
        compared_projections.add(arguments[2].name)
        return []

    monkeypatch.setattr(module, "_read_states", read_states)
    monkeypatch.setattr(log, "head_position", forgotten_at)
    monkeypatch.setattr(module, "one_value", forgotten_at)
    monkeypatch.setattr(module, "differing_tables", no_differences)
    monkeypatch.setattr(module, "_compare_table", compare_table)
    monkeypatch.setattr(module, "ERASURE_TIMEOUT_SECONDS", 0.0)
    refold: Any = StubRefold()
    found = await module._compare(refold, "squad", module._ErasureDeadlines())
    assert compared_projections == expected
    assert {difference.projection for difference in found} == at.keys() - expected

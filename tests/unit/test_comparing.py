"""How near a comparison comes to the tables before its snapshot, and how long it waits for an erasure."""

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


class Refold:
    """A fold from zero that notes how far it was taken."""

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
    monkeypatch: pytest.MonkeyPatch, standings: Iterator[Mapping[str, int]], *, end: int, version: int
) -> list[Mapping[str, int]]:
    """Let a refold catch up with tables that go on. Messages were folded by code of this version."""
    versions = {"agents": agents.fold_version, "messages": version}

    async def look(*_: object) -> Any:
        return {
            name: SimpleNamespace(position=position, fold_version=versions[name])
            for name, position in next(standings).items()
        }

    async def head_position(_: object) -> int:
        return end

    monkeypatch.setattr(module, "_read_states", look)
    monkeypatch.setattr(log, "head_position", head_position)
    refold: Any = Refold()
    await module._catch_up(refold, "squad")
    return list(refold.folded)


async def test_it_goes_on_as_long_as_it_comes_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [{"agents": at, "messages": at - 5} for at in (1_000, 1_100, 1_120, 1_140)]
    folded = await catch_up(monkeypatch, iter(looks), end=2_000, version=messages.fold_version)
    assert folded == looks[:3]


async def test_it_stops_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [{"agents": 1_000, "messages": 900}] * 2
    folded = await catch_up(monkeypatch, iter(looks), end=2_000, version=messages.fold_version)
    assert folded == looks[:1]


async def test_it_waits_for_nothing_that_is_not_to_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other code folded, and events that are not in the log."""
    looks = [{"agents": 2_500, "messages": 900}] * 2
    folded = await catch_up(monkeypatch, iter(looks), end=2_000, version=messages.fold_version + 1)
    assert folded == [{"agents": 2_000}]


def test_tables_have_as_long_again_for_the_next_erasure_once_they_came_to_one(
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
    ("at", "compared"),
    [
        ({"agents": 8, "messages": 9}, {"agents", "messages"}),
        ({"agents": 9, "messages": 8}, {"agents"}),
    ],
    ids=["has come to it", "has yet to come to it"],
)
async def test_only_what_holds_personal_data_is_to_come_to_an_erasure_first(
    monkeypatch: pytest.MonkeyPatch, at: Mapping[str, int], compared: set[str]
) -> None:
    looked_at: set[str] = set()

    async def standings(*_: object) -> Any:
        versions = {"agents": agents.fold_version, "messages": messages.fold_version}
        return {name: module._ProjectionState(at[name], versions[name], None, None) for name in at}

    async def forgotten_at(*_: object) -> int:
        return 9

    async def all_alike(*_: object) -> dict[str, str]:
        return {}

    async def compare_table(*where: Any) -> list[Any]:
        looked_at.add(where[2].name)
        return []

    monkeypatch.setattr(module, "_read_states", standings)
    monkeypatch.setattr(log, "head_position", forgotten_at)
    monkeypatch.setattr(module, "one_value", forgotten_at)
    monkeypatch.setattr(module, "differing_tables", all_alike)
    monkeypatch.setattr(module, "_compare_table", compare_table)
    monkeypatch.setattr(module, "ERASURE_TIMEOUT_SECONDS", 0.0)
    refold: Any = Refold()
    found = await module._compare(refold, "squad", module._ErasureDeadlines())
    assert looked_at == compared
    assert {difference.projection for difference in found} == at.keys() - compared

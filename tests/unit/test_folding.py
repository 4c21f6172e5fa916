"""Which rows are fetched for a page of the log, and which are cached for the next page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from eventstore.events import AgentHeartbeatRecorded, SubjectForgotten
from eventstore.recorded import Recorded
from projections import storage
from projections.agents import AGENTS, AgentRow, agents
from projections.folding import PageFolder
from projections.messages import MESSAGES, MessageRow, messages
from tests.unit.stories import START, given
from tests.unit.test_batch import ANN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.events import AnyEvent
    from projections.projection import Projection, Table

A_MESSAGE = MessageRow("m", "ann", None, "hello", None, None, START, 3)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows of the database, by key."""
    stored: dict[str, Any] = {}

    async def load(_: object, __: object, keys: Sequence[str]) -> list[Any]:
        return [stored[key] for key in keys]

    monkeypatch.setattr(storage, "load", load)
    return stored


async def fold(
    folder: PageFolder, projection: Projection, event: AnyEvent
) -> dict[Table[Any, Any], set[Any]]:
    """Fold a page of one event; return the keys of the rows that were fetched for it."""
    recorded = Recorded(9, "id", "s", 1, event.type, 1, "{}", "ann", None, "c", None, START, b"")
    connection: Any = None
    fetched = folder.keys_to_fetch([projection], [event])
    await folder.fetch(connection, fetched)
    folder.add_to_cache(folder.fold([projection], [recorded], [event]))
    return fetched


async def test_row_is_fetched_once_and_then_cached(stored: dict[str, Any]) -> None:
    folder, event = PageFolder(), AgentHeartbeatRecorded(agent="ann")
    row: AgentRow = given(ANN).row(AGENTS, "ann")
    stored["ann"] = row
    assert await fold(folder, agents, event) == {AGENTS: {"ann"}}
    assert await fold(folder, agents, event) == {}
    assert folder._caches[AGENTS.name]["ann"].position == 9 != row.position


async def test_messages_are_fetched_for_each_page_and_never_cached(
    stored: dict[str, Any],
) -> None:
    """Nothing of an erased message stays in memory."""
    folder, event = PageFolder(), SubjectForgotten(key_id="k", emails=[], messages=["m"], in_plain=0)
    stored["m"] = A_MESSAGE
    for _ in range(2):
        assert await fold(folder, messages, event) == {MESSAGES: {"m"}}
        assert not folder._caches[MESSAGES.name]

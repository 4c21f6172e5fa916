"""A snapshot restores exactly the squad that was stored, or is rejected as invalid."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_type_hints

import orjson
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from msgspec import structs

from eventstore.recorded import Head
from projections.operations import OPERATIONS
from service import commands as do
from service.history import snapshots
from service.history.snapshots import InvalidSnapshot, distance, pack, unpack
from service.memory.residence import RESIDENT
from service.memory.squad import Squad
from tests.support.randomized import examples
from tests.support.squads import contents
from tests.unit.stories import given
from tests.unit.strategies import values_of

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

ACTIVE: dict[str, dict[str, Any]] = {
    "operations": {"state": "active"},
    "reservations": {"state": "active"},
    "budget_days": {"closed_at": None},
    "jobs": {"removed": False},
    "job_runs": {"status": "running"},
    "squad_tasks": {"status": "in_progress"},
    "email_logs": {"status": "classified"},
}
HEAD = Head(7, bytes(range(32)), datetime(2026, 3, 4, 5, 6, 7, 8, tzinfo=UTC))


def rows_of(name: str) -> SearchStrategy[list[Any]]:
    """Arbitrary rows that stay in memory."""
    row = RESIDENT[name].table.row
    fields = {field: values_of(kind) for field, kind in get_type_hints(row).items()}
    fixed = {field: st.just(value) for field, value in ACTIVE.get(name, {}).items()}
    return st.lists(st.builds(row, **{**fields, **fixed}), max_size=3)


def squad_of(rows: dict[str, list[Any]], version: int) -> Squad:
    squad = Squad()
    squad.head = HEAD
    for name, loaded in rows.items():
        squad.load(RESIDENT[name].table, {RESIDENT[name].table.key_of(row): row for row in loaded}.values())
    squad.versions = dict.fromkeys(squad.streams(), version)
    return squad


def round_trip(squad: Squad) -> Squad:
    async def work() -> Squad:
        return await unpack(await pack(squad), squad.head)

    return asyncio.run(work())


def make_squad() -> Squad:
    return given(
        do.RegisterAgent(name="ann", role="tester"),
        do.StartOperation(agent="ann", action="work", resources={"emailId": "e-1", "customerId": "c"}),
        do.ReserveTokens(agent="ann", tokens=5),
        do.CreateTask(title="look"),
        do.LogEmail(gmail_message_id="g-1", from_email="a@example.org", payload={"n": None}),
    ).squad


@examples(50)
@for_all(rows=st.fixed_dictionaries({name: rows_of(name) for name in RESIDENT}), version=st.integers(1, 99))
def test_rows_of_every_kind_are_restored_exactly(rows: dict[str, list[Any]], version: int) -> None:
    squad = squad_of(rows, version)
    restored = round_trip(squad)
    assert contents(restored) == contents(squad)
    for name, theirs in squad.tables.items():
        # 1 and 1.0 are equal but not the same, and so are 0.0 and -0.0.
        ours = [restored.tables[name][key] for key in theirs]
        assert orjson.dumps([structs.astuple(row) for row in ours]) == orjson.dumps(
            [structs.astuple(row) for row in theirs.values()]
        )
        assert all(type(row) is RESIDENT[name].table.row for row in ours)


def test_claims_on_a_resource_keep_their_order_whatever_the_order_of_the_rows() -> None:
    resources = {"emailId": "e-1"}
    story = given(
        do.StartOperation(agent="ann", action="work", resources=resources, ttl_seconds=900.0),
        at=0,
    ).given(do.StartOperation(agent="bob", action="work", resources=resources, ttl_seconds=900.0), at=60)
    squad = story.squad
    first, second = squad.claims(("emailId", "e-1"))
    rows = squad.tables[OPERATIONS.name]
    squad.tables[OPERATIONS.name] = {second: rows[second], first: rows[first]}
    assert round_trip(squad).claims(("emailId", "e-1")) == (first, second)


def test_large_squad_is_restored_from_many_slices() -> None:
    squad = given(*(do.CreateTask(title="look " * 100) for _ in range(3 * snapshots.SLICE_ROWS + 1))).squad
    assert contents(round_trip(squad)) == contents(squad)


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_squad_is_restored_whatever_the_size_of_compressed_chunks(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(snapshots, "_COMPRESSED_AT_ONCE_BYTES", chunk_bytes)
    squad = make_squad()
    assert contents(round_trip(squad)) == contents(squad)


def test_snapshot_with_any_changed_byte_is_rejected() -> None:
    squad = make_squad()
    state = asyncio.run(pack(squad))

    async def work() -> None:
        for place in range(len(state)):
            changed = bytearray(state)
            changed[place] ^= 1 << place % 8
            with pytest.raises(InvalidSnapshot):
                await unpack(bytes(changed), squad.head)

    asyncio.run(work())


@pytest.mark.parametrize("cut", [b"", b"x", b"x" * 32, slice(40), slice(-1)], ids=str)
def test_truncated_snapshot_is_rejected(cut: bytes | slice) -> None:
    squad = make_squad()
    state = asyncio.run(pack(squad))
    with pytest.raises(InvalidSnapshot):
        asyncio.run(unpack(state[cut] if isinstance(cut, slice) else cut, squad.head))


def test_snapshot_of_another_position_or_log_is_rejected() -> None:
    squad = make_squad()
    state = asyncio.run(pack(squad))
    head = squad.head
    assert head.recorded_at
    for other in (
        structs.replace(head, position=head.position + 1),
        structs.replace(head, hash=bytes(32)),
        structs.replace(head, recorded_at=head.recorded_at + timedelta(microseconds=1)),
    ):
        with pytest.raises(InvalidSnapshot):
            asyncio.run(unpack(state, other))


def test_snapshot_of_another_fold_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    squad = make_squad()
    state = asyncio.run(pack(squad))
    monkeypatch.setattr(snapshots, "FOLD", "another")
    with pytest.raises(InvalidSnapshot):
        asyncio.run(unpack(state, squad.head))


def test_snapshot_with_a_valid_digest_but_malformed_content_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    squad = make_squad()
    for lines in ([], [b"[]\n"], [b"{}\n"], [b"not json\n"], [b'[6, "", ""]\n']):
        monkeypatch.setattr(snapshots, "_lines", lambda _, lines=lines: iter(lines))
        state = asyncio.run(pack(squad))
        with pytest.raises(InvalidSnapshot):
            asyncio.run(unpack(state, squad.head))


def test_distance_between_snapshots_is_at_least_the_number_of_rows() -> None:
    squad = make_squad()
    assert distance(squad) == snapshots.INTERVAL_EVENTS
    rows = squad.tables["squad_tasks"]
    [row] = rows.values()
    rows.update({f"task-{number}": row for number in range(3 * snapshots.INTERVAL_EVENTS)})
    assert distance(squad) >= 3 * snapshots.INTERVAL_EVENTS


def test_copy_of_a_squad_stays_unchanged() -> None:
    story = given(
        do.CreateTask(title="look"), do.LogEmail(gmail_message_id="g", from_email="a@example.org")
    )
    before, copy = contents(story.squad.copy()), story.squad.copy()
    story.given(
        do.StartOperation(agent="ann", action="work", resources={"emailId": "e-1"}),
        do.ReserveTokens(agent="ann", tokens=5),
        do.UpdateTask(task_id=next(iter(story.squad.tables["squad_tasks"])), status="completed"),
        at=100_000,
    )
    assert contents(copy) == before
    assert contents(story.squad) != before

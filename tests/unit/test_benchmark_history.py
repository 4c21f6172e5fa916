"""The generated history that benchmarks run on: it is valid, complete and reproducible."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from itertools import chain as flat
from itertools import pairwise

from benchmarks.history import chronicle
from eventstore import chain, codec
from eventstore.recorded import GENESIS_HASH
from service.memory.draft import Draft
from service.memory.squad import Squad

EVENTS = 30_000
KINDS = 39
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def test_history_is_chained_in_order_and_has_every_kind_of_event() -> None:
    log = list(flat.from_iterable(chronicle(EVENTS, NOW)))
    assert len(log) >= EVENTS
    assert [recorded.position for recorded in log] == list(range(1, len(log) + 1))
    assert chain.verify(GENESIS_HASH, log) == log[-1].hash
    versions = Counter[str]()
    for recorded in log:
        versions[recorded.stream] += 1
        assert recorded.version == versions[recorded.stream]
    assert len({recorded.id for recorded in log}) == len(log)
    assert all(earlier.recorded_at <= later.recorded_at for earlier, later in pairwise(log))
    assert log[-1].recorded_at <= NOW
    kinds = Counter(recorded.type for recorded in log)
    assert len(kinds) >= KINDS, codec.EVENT_TYPES.keys() - kinds.keys()


def test_history_can_be_folded_and_leaves_about_the_requested_number_open() -> None:
    squad = Squad()
    for batch in chronicle(10_000, NOW, open_things=500):
        draft = Draft(squad)
        for recorded in batch:
            draft.fold(codec.decode(recorded), recorded)
        squad.merge(draft)
    assert 400 < len(squad.tables["squad_tasks"]) < 600
    assert 400 < len(squad.tables["email_logs"]) < 600
    assert 5 < len(squad.tables["operations"]) < 50


def test_same_seed_gives_the_same_history_and_another_seed_a_different_one() -> None:
    def events_of(seed: int) -> list[tuple[str, str]]:
        events = flat.from_iterable(chronicle(500, NOW, seed=seed))
        return [(recorded.stream, recorded.data) for recorded in events]

    assert events_of(1) == events_of(1)
    assert events_of(1) != events_of(2)

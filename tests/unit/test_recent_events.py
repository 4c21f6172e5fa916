"""Recent events in memory: only what follows directly, taken once, and within bounds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eventstore import codec
from eventstore.recorded import Recorded
from projections import recent_events
from projections.recent_events import RecentEvents
from tests.support.log import message_sent, new_id

if TYPE_CHECKING:
    import pytest

    from eventstore.events import AnyEvent


def _batch(first: int, last: int) -> tuple[list[Recorded], list[AnyEvent]]:
    events: list[AnyEvent] = [message_sent(f"message {position}") for position in range(first, last + 1)]
    stored = [
        Recorded(
            position=first + index,
            id=new_id(),
            stream=event.stream,
            version=first + index,
            type=event.type,
            schema_version=event.schema_version,
            data=codec.encode(event),
            actor="test",
            caused_by=None,
            correlation_id="test",
            idempotency_key=None,
            recorded_at=datetime(2026, 1, 31, tzinfo=UTC),
            hash=bytes(32),
        )
        for index, event in enumerate(events)
    ]
    return stored, events


def _take_positions(kept: RecentEvents, after: int) -> list[int]:
    page = kept.take_after(after)
    if page is None:
        return []
    assert [codec.encode(event) for event in page.events] == [one.data for one in page.recorded]
    return [one.position for one in page.recorded]


def test_consecutive_batches_form_one_page() -> None:
    kept = RecentEvents()
    kept.extend(*_batch(5, 6))
    kept.extend(*_batch(7, 7))
    assert _take_positions(kept, 4) == [5, 6, 7]
    assert _take_positions(kept, 7) == []
    kept.extend(*_batch(8, 8))
    assert _take_positions(kept, 7) == [8]


def test_events_read_from_the_log_meanwhile_are_left_out() -> None:
    kept = RecentEvents()
    kept.extend(*_batch(5, 8))
    assert _take_positions(kept, 6) == [7, 8]
    kept.extend(*_batch(9, 10))
    assert _take_positions(kept, 10) == []
    assert not kept


def test_events_after_a_gap_are_kept_until_the_log_is_read_up_to_them() -> None:
    kept = RecentEvents()
    kept.extend(*_batch(5, 6))
    assert _take_positions(kept, 3) == []
    assert _take_positions(kept, 4) == [5, 6]


def test_older_events_are_dropped_when_the_next_batch_does_not_follow() -> None:
    kept = RecentEvents()
    kept.extend(*_batch(5, 6))
    kept.extend(*_batch(8, 9))
    assert _take_positions(kept, 4) == []
    assert _take_positions(kept, 7) == [8, 9]


def test_all_events_are_dropped_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_events, "PAGE_EVENTS", 3)
    kept = RecentEvents()
    kept.extend(*_batch(1, 3))
    assert len(kept) == 3
    kept.extend(*_batch(4, 4))
    assert not kept
    monkeypatch.setattr(recent_events, "MAX_BYTES", 10)
    kept.extend(*_batch(5, 5))
    assert not kept


def test_there_are_no_events_at_first() -> None:
    assert _take_positions(RecentEvents(), 0) == []

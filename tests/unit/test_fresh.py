"""What was just appended, at hand: only what directly follows, once, and never without bound."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eventstore import codec
from eventstore.recorded import Recorded
from projections import recent_events
from projections.recent_events import RecentEvents
from tests.support.log import new_id, said

if TYPE_CHECKING:
    import pytest

    from eventstore.events import AnyEvent


def _batch(first: int, last: int) -> tuple[list[Recorded], list[AnyEvent]]:
    events: list[AnyEvent] = [said(f"message {position}") for position in range(first, last + 1)]
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


def _taken(kept: RecentEvents, after: int) -> list[int]:
    page = kept.take_after(after)
    if page is None:
        return []
    assert [codec.encode(event) for event in page.events] == [one.data for one in page.recorded]
    return [one.position for one in page.recorded]


def test_batches_that_follow_one_another_are_one_page() -> None:
    kept = RecentEvents()
    kept.extend(*_batch(5, 6))
    kept.extend(*_batch(7, 7))
    assert _taken(kept, 4) == [5, 6, 7]
    assert _taken(kept, 7) == []
    kept.extend(*_batch(8, 8))
    assert _taken(kept, 7) == [8]


def test_what_was_read_from_the_log_meanwhile_is_left_out() -> None:
    kept = RecentEvents()
    kept.extend(*_batch(5, 8))
    assert _taken(kept, 6) == [7, 8]
    kept.extend(*_batch(9, 10))
    assert _taken(kept, 10) == []
    assert not kept


def test_what_begins_later_waits_for_the_log_to_be_read_up_to_there() -> None:
    kept = RecentEvents()
    kept.extend(*_batch(5, 6))
    assert _taken(kept, 3) == []
    assert _taken(kept, 4) == [5, 6]


def test_where_others_wrote_in_between_what_is_older_is_let_go() -> None:
    kept = RecentEvents()
    kept.extend(*_batch(5, 6))
    kept.extend(*_batch(8, 9))
    assert _taken(kept, 4) == []
    assert _taken(kept, 7) == [8, 9]


def test_what_nobody_fetches_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_events, "PAGE_EVENTS", 3)
    kept = RecentEvents()
    kept.extend(*_batch(1, 3))
    assert len(kept) == 3
    kept.extend(*_batch(4, 4))
    assert not kept
    monkeypatch.setattr(recent_events, "MAX_BYTES", 10)
    kept.extend(*_batch(5, 5))
    assert not kept


def test_it_is_empty_at_first() -> None:
    assert _taken(RecentEvents(), 0) == []

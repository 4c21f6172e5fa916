"""How many commands make a batch: enough to share a commit, and few enough to leave something to decide."""

from __future__ import annotations

import pytest

from service.writing.batch_size import AMORTIZED_COMMANDS, MAX_LINGER_SECONDS, BatchSizer
from service.writing.command_queue import MAX_BATCH_COMMANDS


def _after(*, append_seconds: float, decision_seconds: float = 20e-6) -> BatchSizer:
    pace = BatchSizer()
    for _ in range(100):
        pace.record_decisions(50, 50 * decision_seconds)
        pace.record_append(append_seconds)
    return pace


def test_half_of_those_that_wait_are_left_to_be_decided_meanwhile() -> None:
    pace = _after(append_seconds=0.0005)
    assert pace.initial_size(64) == 32
    assert pace.pipelined_size() >= 32


def test_of_many_no_more_than_share_a_commit_well() -> None:
    pace = _after(append_seconds=0.0005)
    assert pace.initial_size(512) == pace.initial_size(5_000) == pace.pipelined_size() == AMORTIZED_COMMANDS


@pytest.mark.parametrize("waiting", range(1, 11))
def test_a_few_go_together(waiting: int) -> None:
    assert _after(append_seconds=0.0005).initial_size(waiting) >= waiting


def test_where_appending_takes_long_all_share_one_commit() -> None:
    pace = _after(append_seconds=0.02)
    assert pace.initial_size(400) >= 400
    assert pace.pipelined_size() >= 400


def test_it_comes_down_again_when_appends_are_quick_again() -> None:
    pace = _after(append_seconds=0.02)
    pace.record_append(0.0005)
    assert pace.pipelined_size() == AMORTIZED_COMMANDS


def test_an_answer_that_waited_for_this_process_says_little_of_the_database() -> None:
    pace = _after(append_seconds=0.0005)
    for seconds in (0.004, 0.003, 0.005, 0.004):
        pace.record_append(seconds)
    assert pace.pipelined_size() == AMORTIZED_COMMANDS


def test_what_stays_slow_is_believed_in_time() -> None:
    pace = _after(append_seconds=0.0005)
    for _ in range(400):
        pace.record_append(0.02)
    assert pace.pipelined_size() >= 400


def test_nobody_is_waited_for_where_deciding_fills_the_time_of_an_append() -> None:
    assert _after(append_seconds=0.0005).linger_seconds(64) == 0


def test_those_who_are_answered_are_waited_for_where_appending_takes_long() -> None:
    assert 0 < _after(append_seconds=0.02).linger_seconds(64) < 0.02 / 4


def test_nobody_is_waited_for_as_long_as_somebody_would_notice() -> None:
    """As where a synchronous standby is away, and commits take until it is back."""
    assert _after(append_seconds=20).linger_seconds(64) == MAX_LINGER_SECONDS


def test_a_batch_has_its_bound_however_long_appending_takes() -> None:
    pace = _after(append_seconds=30)
    assert pace.initial_size(10_000) == pace.pipelined_size() == MAX_BATCH_COMMANDS


def test_a_clock_that_stands_still_is_not_believed() -> None:
    pace = BatchSizer()
    for _ in range(10_000):
        pace.record_decisions(1, 0)
    pace.record_append(0.001)
    assert 400 < pace.pipelined_size() <= 500


def test_at_first_there_is_something_to_go_by() -> None:
    assert [BatchSizer().initial_size(waiting) for waiting in (1, 2, 64, 1_000)] == [
        1,
        1,
        32,
        AMORTIZED_COMMANDS,
    ]


def test_how_long_deciding_takes_is_measured_where_anything_is_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1_000.0]
    monkeypatch.setattr("service.writing.batch_size.monotonic", lambda: now[0])
    pace = BatchSizer()
    for _ in range(100):
        with pace.timing_decisions(50):
            now[0] += 50 * 25e-6
        with pace.timing_decisions(0):
            now[0] += 60
    pace.record_append(0.02)
    assert pace.pipelined_size() == pytest.approx(400, abs=2)

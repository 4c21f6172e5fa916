"""How many commands a batch takes: enough to share a commit, few enough to leave some for the next one."""

from __future__ import annotations

import pytest

from service.writing.batch_size import AMORTIZED_COMMANDS, MAX_LINGER_SECONDS, BatchSizer
from service.writing.command_queue import MAX_BATCH_COMMANDS


def _sizer(*, append_seconds: float, decision_seconds: float = 20e-6) -> BatchSizer:
    sizer = BatchSizer()
    for _ in range(100):
        sizer.record_decisions(50, 50 * decision_seconds)
        sizer.record_append(append_seconds)
    return sizer


def test_half_of_the_waiting_commands_are_left_for_the_next_batch() -> None:
    sizer = _sizer(append_seconds=0.0005)
    assert sizer.initial_size(64) == 32
    assert sizer.pipelined_size() >= 32


def test_long_queue_is_split_into_batches_that_amortize_a_commit() -> None:
    sizer = _sizer(append_seconds=0.0005)
    assert (
        sizer.initial_size(512) == sizer.initial_size(5_000) == sizer.pipelined_size() == AMORTIZED_COMMANDS
    )


@pytest.mark.parametrize("waiting", range(1, 11))
def test_few_commands_share_one_batch(waiting: int) -> None:
    assert _sizer(append_seconds=0.0005).initial_size(waiting) >= waiting


def test_all_commands_share_one_batch_when_appends_are_slow() -> None:
    sizer = _sizer(append_seconds=0.02)
    assert sizer.initial_size(400) >= 400
    assert sizer.pipelined_size() >= 400


def test_size_shrinks_again_after_one_fast_append() -> None:
    sizer = _sizer(append_seconds=0.02)
    sizer.record_append(0.0005)
    assert sizer.pipelined_size() == AMORTIZED_COMMANDS


def test_few_slow_appends_do_not_raise_the_size() -> None:
    """Their answers may only have waited for this process."""
    sizer = _sizer(append_seconds=0.0005)
    for seconds in (0.004, 0.003, 0.005, 0.004):
        sizer.record_append(seconds)
    assert sizer.pipelined_size() == AMORTIZED_COMMANDS


def test_many_slow_appends_raise_the_size() -> None:
    sizer = _sizer(append_seconds=0.0005)
    for _ in range(400):
        sizer.record_append(0.02)
    assert sizer.pipelined_size() >= 400


def test_batch_does_not_linger_when_deciding_fills_the_time_of_an_append() -> None:
    assert _sizer(append_seconds=0.0005).linger_seconds(64) == 0


def test_batch_lingers_when_appends_are_slow() -> None:
    assert 0 < _sizer(append_seconds=0.02).linger_seconds(64) < 0.02 / 4


def test_linger_is_bounded_however_slow_appends_are() -> None:
    """As when a synchronous standby is away, and commits wait until it is back."""
    assert _sizer(append_seconds=20).linger_seconds(64) == MAX_LINGER_SECONDS


def test_size_is_bounded_however_slow_appends_are() -> None:
    sizer = _sizer(append_seconds=30)
    assert sizer.initial_size(10_000) == sizer.pipelined_size() == MAX_BATCH_COMMANDS


def test_decisions_measured_as_zero_seconds_do_not_inflate_the_size() -> None:
    sizer = BatchSizer()
    for _ in range(10_000):
        sizer.record_decisions(1, 0)
    sizer.record_append(0.001)
    assert 400 < sizer.pipelined_size() <= 500


def test_new_sizer_has_usable_sizes() -> None:
    assert [BatchSizer().initial_size(waiting) for waiting in (1, 2, 64, 1_000)] == [
        1,
        1,
        32,
        AMORTIZED_COMMANDS,
    ]


def test_decision_time_is_measured_only_when_commands_are_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1_000.0]
    monkeypatch.setattr("service.writing.batch_size.monotonic", lambda: now[0])
    sizer = BatchSizer()
    for _ in range(100):
        with sizer.timing_decisions(50):
            now[0] += 50 * 25e-6
        with sizer.timing_decisions(0):
            now[0] += 60
    sizer.record_append(0.02)
    assert sizer.pipelined_size() == pytest.approx(400, abs=2)

"""Quick runs of the benchmarks, with one of each kind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest

import benchmarks
from benchmarks.suite import ALL

REPOSITORY = Path(benchmarks.__file__).parent.parent

SIMILAR = {
    "usage-over-http",
    "reservation-over-http",
    "claim-over-http",
    "status-over-http",
    "encrypted-512-callers",
}
"""They differ from another one only in the requests, which tests/api covers."""

NAMES = [benchmark.name for benchmark in ALL if benchmark.name not in SIMILAR]
TIMEOUT_SECONDS = 240
RUNS = 3
"""Several benchmarks share a run, as in `make bench`; pytest's processes can share the runs."""


@pytest.mark.parametrize("names", [NAMES[first::RUNS] for first in range(RUNS)], ids=" ".join)
def test_quick_run_writes_figures_of_every_contender(names: list[str], tmp_path: Path) -> None:
    output = _output_of("benchmarks", *names, "--quick", "--results", str(tmp_path))
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())["benchmarks"]
    assert list(written) == names
    for contenders in written.values():
        assert len(contenders) >= 2
        for contender, found in contenders.items():
            assert contender in output
            assert found["figures"]["per_second"]["median"] > 0
            assert all(ratio["median"] > 0 for ratio in found["ratios"].values())


def test_history_is_generated_and_read_at_past_positions(empty_database: str) -> None:
    def run(*arguments: str) -> str:
        return _output_of(*arguments, "--dsn", empty_database)

    assert "12,0" in run("benchmarks.history", "--events", "12000")
    output = run("benchmarks.time_travel", "--without", "1", "--positions", "3")
    assert "2 snapshots" in output
    assert "peak memory" in output


def test_soak_reports_growth_and_a_log_that_holds() -> None:
    output = _output_of("benchmarks.soak", "--minutes", "0.1", "--per-second", "50")
    assert "resident memory in the second half" in output
    assert "tables      every row follows from the log" in output


def _output_of(*arguments: str) -> str:
    """The output of a program, interrupted if it takes too long, so that it stops what it started."""
    with subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=REPOSITORY, stdout=PIPE, stderr=STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate()
    assert process.returncode == 0, output
    return output

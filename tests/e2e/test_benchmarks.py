"""The benchmarks run: quick ones of each kind of stage, with processes and without."""

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


ALIKE = {
    "usage-over-http",
    "reservation-over-http",
    "claim-over-http",
    "status-over-http",
    "encrypted-512-callers",
}
"""They differ from another one in what is asked for, which tests/api looks at."""


NAMES = [benchmark.name for benchmark in ALL if benchmark.name not in ALIKE]
TIMEOUT_SECONDS = 240
RUNS = 3
"""Several at a time are loaded once, as by `make bench`; and others of pytest's processes take some."""


@pytest.mark.parametrize("names", [NAMES[first::RUNS] for first in range(RUNS)], ids=" ".join)
def test_a_quick_run_writes_figures_of_every_contender(names: list[str], tmp_path: Path) -> None:
    output = _printed("benchmarks", *names, "--quick", "--results", str(tmp_path))
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())["benchmarks"]
    assert list(written) == names
    for contenders in written.values():
        assert len(contenders) >= 2
        for contender, found in contenders.items():
            assert contender in output
            assert found["figures"]["per_second"]["median"] > 0
            assert all(ratio["median"] > 0 for ratio in found["ratios"].values())


def test_a_history_is_made_and_looked_back_on(empty_database: str) -> None:
    def run(*arguments: str) -> str:
        return _printed(*arguments, "--dsn", empty_database)

    assert "12,0" in run("benchmarks.history", "--events", "12000")
    told = run("benchmarks.time_travel", "--without", "1", "--positions", "3")
    assert "2 snapshots" in told
    assert "peak memory" in told


def _printed(*arguments: str) -> str:
    """What a program of ours prints; it ends what it has started, also where that takes too long."""
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

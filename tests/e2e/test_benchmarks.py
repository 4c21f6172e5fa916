"""The benchmarks run: quick ones of each kind of stage, with processes and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
RUNS = 3
"""Several at a time are loaded once, as by `make bench`; and others of pytest's processes take some."""


@pytest.mark.parametrize("names", [NAMES[first::RUNS] for first in range(RUNS)], ids=" ".join)
def test_a_quick_run_writes_figures_of_every_contender(names: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", *names, "--quick", "--results", str(tmp_path)]
    finished = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())["benchmarks"]
    assert list(written) == names
    for contenders in written.values():
        assert len(contenders) >= 2
        for contender, found in contenders.items():
            assert contender in finished.stdout
            assert found["figures"]["per_second"]["median"] > 0
            assert all(ratio["median"] > 0 for ratio in found["ratios"].values())


def test_a_history_is_made_and_looked_back_on(empty_database: str) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments, "--dsn", empty_database]
        finished = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    assert "12,0" in run("benchmarks.history", "--events", "12000")
    told = run("benchmarks.time_travel", "--without", "1", "--positions", "3")
    assert "2 snapshots" in told
    assert "peak memory" in told

"""The benchmarks run: a quick one of each kind of stage, with processes and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.suite import ALL

REPOSITORY = Path(benchmarks.__file__).parent.parent


@pytest.mark.parametrize("name", [benchmark.name for benchmark in ALL])
def test_a_quick_run_writes_figures_of_every_contender(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--results", str(tmp_path)]
    finished = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    (path,) = tmp_path.iterdir()
    contenders = json.loads(path.read_text())["benchmarks"][name]
    assert len(contenders) >= 2
    for contender, found in contenders.items():
        assert contender in finished.stdout
        assert found["figures"]["per_second"]["median"] > 0
        assert all(ratio["median"] > 0 for ratio in found["ratios"].values())

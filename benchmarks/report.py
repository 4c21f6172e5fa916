"""The results: a table for people, and JSON for comparing runs."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from service.embedded.programs import MAJOR_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.harness import Benchmark, Plan, Score, Spread

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("aiohttp", "orjson", "psycopg", "pydantic", "uvloop")

Results = dict[str, dict[str, "Score"]]


def table(benchmark: Benchmark, scores: Mapping[str, Score]) -> Table:
    """One benchmark: the median, minimum and maximum of each figure, and the ratios to the baselines."""
    figures = list(dict.fromkeys(figure for score in scores.values() for figure in score.figures))
    shown = Table(title=benchmark.title, title_justify="left")
    shown.add_column("", no_wrap=True)
    for figure in figures:
        shown.add_column(figure.replace("_", " "), justify="right")
    for other in benchmark.compared_with:
        shown.add_column(f"to {other}", justify="right")
    for name, score in scores.items():
        cells = [_shown(score.figures[figure]) if figure in score.figures else "" for figure in figures]
        ratios = [_ratio(benchmark, name, other, score) for other in benchmark.compared_with]
        shown.add_row(name, *cells, *ratios)
    return shown


def document(results: Results, plan: Plan) -> dict[str, Any]:
    """All results, including every sample."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processors": os.cpu_count(),
            # All load in the last minute, the benchmarks' own included.
            "load_average": os.getloadavg()[0],
            "architecture": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "python": platform.python_version(),
            "postgres": MAJOR_VERSION,
            **{name: version(name) for name in _LIBRARIES},
        },
        "plan": plan._asdict(),
        "benchmarks": {
            benchmark: {
                name: {
                    "figures": {figure: spread._asdict() for figure, spread in score.figures.items()},
                    "ratios": {other: ratio._asdict() for other, ratio in score.ratios.items()},
                    "samples": score.samples,
                }
                for name, score in scores.items()
            }
            for benchmark, scores in results.items()
        },
    }


def write(results: Results, plan: Plan, folder: Path = RESULTS) -> Path:
    """Write the JSON to a new file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(document(results, plan), indent=2) + "\n")
    return path


def _ratio(benchmark: Benchmark, name: str, other: str, score: Score) -> str:
    if name == other:
        return "1"
    aim = benchmark.aims.get((name, other))
    return _shown(score.ratios[other]) + ("" if aim is None else f", target {_number(aim)}")


def _shown(spread: Spread) -> str:
    median, least, most = map(_number, spread)
    return median if least == most else f"{median} ({least} .. {most})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

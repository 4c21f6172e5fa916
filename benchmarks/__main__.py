"""`python -m benchmarks [NAME ...] [--quick] [--rounds N] [--seconds S] [--plot FILE] [--list]`."""

from __future__ import annotations

import gc
from pathlib import Path

import click
import uvloop
from rich.console import Console

from benchmarks import plot, report
from benchmarks.harness import Plan, run
from benchmarks.suite import ALL
from service.cli.running import COLLECT_AFTER

_DEFAULT = Plan(rounds=3, seconds=2.0, warm_up_seconds=0.5)
_QUICK = Plan(rounds=1, seconds=0.1, warm_up_seconds=0.0)
_FILE_WIDTH = 200
_BY_NAME = {benchmark.name: benchmark for benchmark in ALL}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(_BY_NAME)))
@click.option("--quick", is_flag=True, help="Only check that everything runs; the figures mean nothing.")
@click.option("--rounds", type=click.IntRange(1, 100), help=f"Rounds of measurements.  [{_DEFAULT.rounds}]")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60.0), help=f"Length of a measurement.  [{_DEFAULT.seconds:g}]"
)
@click.option(
    "--results", type=click.Path(path_type=Path), default=report.RESULTS, help="Folder for the JSON."
)
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), help="Draw the ratios into this SVG file."
)
@click.option("--list", "only_list", is_flag=True, help="List the benchmarks.")
def main(
    *,
    names: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    results: Path,
    picture: Path | None,
    only_list: bool,
) -> None:
    """Measure the squad against its baselines; takes about a minute in all."""
    chosen = [_BY_NAME[name] for name in names] or list(ALL)
    if only_list:
        for benchmark in chosen:
            click.echo(f"{benchmark.name:24} {benchmark.title}")
        return
    plan = _QUICK if quick else _DEFAULT
    plan = plan._replace(rounds=rounds or plan.rounds, seconds=seconds or plan.seconds)
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    # As in the service, because some benchmarks run in this process.
    gc.set_threshold(*COLLECT_AFTER)
    found: report.Results = {}
    for benchmark in chosen:
        with console.status(f"{benchmark.name}: {plan.rounds} rounds"):
            found[benchmark.name] = uvloop.run(run(benchmark, plan))
        console.print(report.table(benchmark, found[benchmark.name]))
    path = report.write(found, plan, results)
    if picture:
        shown = plot.rows([(_BY_NAME[name], scores) for name, scores in found.items()])
        picture.write_text(plot.svg(shown), encoding="utf-8")
    console.print(f"median (min .. max) of {plan.rounds} rounds; all samples in {path}")


if __name__ == "__main__":
    main()

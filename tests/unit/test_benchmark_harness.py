"""The arithmetic of the benchmarks: medians over rounds, ratios within a round, the order of turns."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from benchmarks.harness import Benchmark, Contender, Plan, Spread, percentile, run, score

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.harness import Measure, Sample


def benchmark(
    *contenders: Contender, baseline: str = "bare", best_of: dict[str, list[str]] | None = None
) -> Benchmark:
    @asynccontextmanager
    async def prepare(_: Plan) -> AsyncIterator[Sequence[Contender]]:
        yield contenders

    return Benchmark(
        name="example",
        title="An example",
        figure="rate",
        baseline=baseline,
        best_of=best_of or {},
        prepare=prepare,
    )


def rates(*values: float) -> list[Sample]:
    return [{"rate": value} for value in values]


def test_spread_has_the_median_least_and_most_of_the_rounds() -> None:
    assert Spread.of([30, 10, 20]) == Spread(median=20, least=10, most=30)
    assert Spread.of([4, 1, 2, 3]) == Spread(median=2.5, least=1, most=4)


def test_ratio_is_taken_within_each_round_and_not_between_medians() -> None:
    # A machine that is three times as fast in one round does not change the ratio.
    scores = score(benchmark(), {"ours": rates(50, 150, 40), "bare": rates(100, 300, 100)})
    assert scores["ours"].ratios["bare"] == Spread(median=0.5, least=0.4, most=0.5)
    assert scores["bare"].ratios["bare"] == Spread(median=1, least=1, most=1)


def test_best_of_several_is_the_one_with_the_greatest_median() -> None:
    comparison = benchmark(baseline="plain, best", best_of={"plain, best": ["plain 1", "plain 8"]})
    samples = {"ours": rates(40, 40), "plain 1": rates(9, 11), "plain 8": rates(20, 20)}
    scores = score(comparison, samples)
    assert scores["plain, best"].samples == samples["plain 8"]
    assert scores["ours"].ratios["plain, best"].median == 2


@pytest.mark.parametrize("warm_up", [["bare 1", "ours 1"], []], ids=["with warm-up", "without warm-up"])
async def test_every_round_measures_all_contenders_and_begins_with_another_one(warm_up: list[str]) -> None:
    turns: list[str] = []

    def measure(name: str) -> Measure:
        async def measure_once(seconds: float) -> Sample:
            turns.append(f"{name} {seconds:g}")
            return {"rate": 1.0}

        return measure_once

    contenders = [Contender(name, measure(name)) for name in ("bare", "ours")]
    scores = await run(benchmark(*contenders), Plan(rounds=2, seconds=5, warm_up_seconds=len(warm_up) / 2))
    assert turns == [*warm_up, "bare 5", "ours 5", "ours 5", "bare 5"]
    assert all(len(found.samples) == 2 for found in scores.values())


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 50), (99, 99), (100, 100)])
def test_percentile_is_a_measured_value(percent: int, value: int) -> None:
    assert percentile(range(1, 101), percent) == value
    assert percentile([7.0], percent) == 7.0

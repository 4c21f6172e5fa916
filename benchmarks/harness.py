"""Benchmarks: contenders measured in turn, medians over rounds, ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractAsyncContextManager

Sample = dict[str, float]
"""The result of measuring a contender once: figures by name, among them the benchmark's `figure`."""

Measure = Callable[[float], Awaitable[Sample]]
"""Measures for the given number of seconds."""


class Contender(NamedTuple):
    """One of the things that a benchmark compares."""

    name: str
    measure: Measure


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A comparison of contenders."""

    name: str
    title: str
    figure: str
    """The figure of the samples that is compared; higher is better."""
    baseline: str
    """The contender to which the ratios of the others are computed."""
    best_of: Mapping[str, Sequence[str]]
    """Contenders that are one thing under several conditions, by the name for the best of them."""
    prepare: Callable[[Plan], AbstractAsyncContextManager[Sequence[Contender]]]
    """Sets up the contenders, and tears them down."""
    beside: Sequence[str] = ()
    """Further baselines."""
    aims: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """The target for a ratio, by the names of the contender and of its baseline."""

    @property
    def compared_with(self) -> Sequence[str]:
        """All baselines, the main one first."""
        return (self.baseline, *self.beside)


class Plan(NamedTuple):
    """The number and length of the measurements."""

    rounds: int
    seconds: float
    """Length of a measurement."""
    warm_up_seconds: float
    """Length of an uncounted measurement before the others; 0 for none."""


class Spread(NamedTuple):
    """A figure over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of the values, of which there is at least one."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1])


class Score(NamedTuple):
    """One contender's figures over the rounds."""

    samples: Sequence[Sample]
    figures: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    """Ratios within a round, by baseline."""


async def run(benchmark: Benchmark, plan: Plan) -> dict[str, Score]:
    """Measure every contender once a round; each round starts with a different one."""
    async with benchmark.prepare(plan) as contenders:
        samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
        if plan.warm_up_seconds:
            for contender in contenders:
                await contender.measure(plan.warm_up_seconds)
        for number in range(plan.rounds):
            first = number % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                samples[contender.name].append(await contender.measure(plan.seconds))
    return score(benchmark, samples)


def score(benchmark: Benchmark, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Score]:
    """Compute medians and ratios from a benchmark's samples, which are in the order of the rounds."""
    everyone = dict(samples)
    for name, candidates in benchmark.best_of.items():
        everyone[name] = everyone[best(benchmark.figure, {one: samples[one] for one in candidates})]
    return {
        name: Score(
            samples=theirs,
            figures={figure: Spread.of(sample[figure] for sample in theirs) for figure in theirs[0]},
            ratios={
                other: _ratio(benchmark.figure, theirs, everyone[other])
                for other in benchmark.compared_with
            },
        )
        for name, theirs in everyone.items()
    }


def _ratio(figure: str, ours: Sequence[Sample], others: Sequence[Sample]) -> Spread:
    return Spread.of(sample[figure] / base[figure] for sample, base in zip(ours, others, strict=True))


def best(figure: str, samples: Mapping[str, Sequence[Sample]]) -> str:
    """The contender with the highest median of a figure."""
    return max(samples, key=lambda name: statistics.median(sample[figure] for sample in samples[name]))


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of ascending values."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

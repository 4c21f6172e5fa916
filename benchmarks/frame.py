"""What a benchmark is: contenders measured in turn, medians over rounds, ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractAsyncContextManager

Sample = dict[str, float]
"""What one measurement of one contender gave: figures by name, among them the benchmark's `figure`."""

Measure = Callable[[float], Awaitable[Sample]]
"""Measures for so many seconds."""


class Contender(NamedTuple):
    """One of those that are compared."""

    name: str
    measure: Measure


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A comparison."""

    name: str
    title: str
    figure: str
    """Which figure of the samples is compared; the more the better."""
    baseline: str
    """The contender that the others' ratios are to."""
    best_of: Mapping[str, Sequence[str]]
    """Contenders that are the same thing under several conditions, by the name for the best of them."""
    prepare: Callable[[Plan], AbstractAsyncContextManager[Sequence[Contender]]]
    """Sets the stage, and clears it away."""
    beside: Sequence[str] = ()
    """Further contenders that the others' ratios are to."""
    aims: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """The ratio that a contender is meant to reach, by its name and that of whom it is compared with."""

    @property
    def compared_with(self) -> Sequence[str]:
        """Everybody that ratios are to, the baseline first."""
        return (self.baseline, *self.beside)


class Plan(NamedTuple):
    """How long everything may take."""

    rounds: int
    seconds: float
    """Of one measurement."""
    warm_up_seconds: float
    """Of one that does not count, before all others; none where this is 0."""


class Spread(NamedTuple):
    """A figure over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1])


class Score(NamedTuple):
    """One contender's figures over the rounds."""

    samples: Sequence[Sample]
    figures: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    """To each of those that the benchmark compares with, in the same round."""


async def run(benchmark: Benchmark, plan: Plan) -> dict[str, Score]:
    """Measures every contender once a round, each round beginning with another one."""
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
    """The medians and ratios of a benchmark's samples, which are in the order of the rounds."""
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
    """The contender whose median of a figure is the greatest."""
    return max(samples, key=lambda name: statistics.median(sample[figure] for sample in samples[name]))


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The least of the ordered values that at least so many percent of them do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

"""The ratios as a bar chart, with the minimum and maximum over the rounds, and the target.

The scale is logarithmic: twice as fast and half as fast are equally far from 1.
"""

from __future__ import annotations

from html import escape
from math import ceil, floor, log2
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.harness import Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.harness import Benchmark, Score

_ROW, _LABEL, _SCALE, _MARGIN, _TEXT = 26, 480, 380, 20, 70
_STYLE = """\
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .faint { fill: #6e7781; font-size: 11px }
  .line { stroke: #d0d7de }
  .even { stroke: #8c959f }
  .bar { fill: #54aeff }
  .range { stroke: #0550ae; stroke-width: 2 }
  .aim { stroke: #cf222e; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .faint { fill: #8d96a0 } .line { stroke: #30363d } .bar { fill: #1f6feb }
    .range { stroke: #79c0ff } .aim { stroke: #ff7b72 }
  }"""


class Row(NamedTuple):
    """One ratio."""

    label: str
    ratio: Spread
    aim: float | None


def rows(results: Sequence[tuple[Benchmark, dict[str, Score]]]) -> list[Row]:
    """The ratios that have a target, in the order of the benchmarks."""
    return [
        Row(f"{benchmark.name}: {name} to {other}", scores[name].ratios[other], aim)
        for benchmark, scores in results
        for (name, other), aim in benchmark.aims.items()
    ]


def svg(shown: Sequence[Row]) -> str:
    """The chart as SVG, for at least one ratio."""
    values = [value for row in shown for value in (*row.ratio, row.aim) if value]
    low, high = floor(log2(min(values, default=1))), ceil(log2(max(values, default=1)))
    low, high = min(low, -1), max(high, 1)
    width, height = _MARGIN * 2 + _LABEL + _SCALE + _TEXT, _MARGIN * 2 + _ROW * (len(shown) + 1)

    def at(value: float) -> float:
        inside = min(max(log2(value), low), high) if value > 0 else low
        return round(_MARGIN + _LABEL + _SCALE * (inside - low) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<style>\n{_STYLE}\n</style>",
        *_grid(low, high, at, height),
    ]
    for number, row in enumerate(shown):
        parts += _bar(row, _MARGIN + _ROW * number, at)
    return "\n".join([*parts, "</svg>", ""])


def _grid(low: int, high: int, at: Callable[[float], float], height: int) -> Iterator[str]:
    bottom = height - _MARGIN - _ROW + 8
    for power in range(low, high + 1):
        x, kind = at(2.0**power), "even" if power == 0 else "line"
        yield f'<line class="{kind}" x1="{x}" y1="{_MARGIN}" x2="{x}" y2="{bottom}"/>'
        name = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        yield f'<text class="faint" x="{x}" y="{bottom + 14}" text-anchor="middle">{name}</text>'


def _bar(row: Row, top: int, at: Callable[[float], float]) -> Iterator[str]:
    middle = top + _ROW // 2
    start, end = sorted((at(1.0), at(row.ratio.median)))
    label = escape(row.label)
    yield f'<text x="{_MARGIN + _LABEL - 10}" y="{middle + 4}" text-anchor="end">{label}</text>'
    width, height = round(end - start, 1), _ROW - 10
    yield f'<rect class="bar" x="{start}" y="{top + 5}" width="{width}" height="{height}"/>'
    yield (
        f'<line class="range" x1="{at(row.ratio.least)}" y1="{middle}"'
        f' x2="{at(row.ratio.most)}" y2="{middle}"/>'
    )
    if row.aim is not None:
        x = at(row.aim)
        yield f'<line class="aim" x1="{x}" y1="{top + 2}" x2="{x}" y2="{top + _ROW - 2}"/>'
    text = f"{row.ratio.median:.2f}" if row.ratio.median < 10 else f"{row.ratio.median:.1f}"
    yield f'<text x="{_MARGIN + _LABEL + _SCALE + 10}" y="{middle + 4}">{text}</text>'

"""The bar chart of the benchmarks' ratios."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.harness import Spread
from benchmarks.plot import Row, svg

SVG = "{http://www.w3.org/2000/svg}"


def draw(*rows: Row) -> ElementTree.Element:
    return ElementTree.fromstring(svg(rows))


def bars(chart: ElementTree.Element) -> list[tuple[float, float]]:
    found = chart.iter(f"{SVG}rect")
    return [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in found]


def test_twice_and_half_are_equally_far_from_one() -> None:
    twice, half = bars(draw(Row("twice", Spread(2, 2, 2), None), Row("half", Spread(0.5, 0.5, 0.5), None)))
    assert twice[1] == pytest.approx(half[1], abs=0.2)
    assert half[0] + half[1] == pytest.approx(twice[0], abs=0.2)


def test_labels_are_escaped_and_the_target_is_drawn() -> None:
    chart = draw(Row("a < b & c", Spread(3, 2, 4), 2.5))
    assert "a < b & c" in [text.text for text in chart.iter(f"{SVG}text")]
    assert len([line for line in chart.iter(f"{SVG}line") if line.attrib["class"] == "aim"]) == 1


@pytest.mark.parametrize("ratio", [Spread(0, 0, 0), Spread(1, 1, 1), Spread(5_000, 4_000, 6_000)])
def test_every_ratio_stays_within_the_chart(ratio: Spread) -> None:
    chart = draw(Row("any", ratio, 1.0))
    width = float(chart.attrib["viewBox"].split()[2])
    assert all(0 <= x <= x + wide <= width for x, wide in bars(chart))

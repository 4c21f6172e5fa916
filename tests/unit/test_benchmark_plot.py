"""The picture of the benchmarks' ratios."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.harness import Spread
from benchmarks.plot import Row, svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*rows: Row) -> ElementTree.Element:
    return ElementTree.fromstring(svg(rows))


def bars(picture: ElementTree.Element) -> list[tuple[float, float]]:
    found = picture.iter(f"{SVG}rect")
    return [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in found]


def test_twice_and_half_lie_equally_far_from_even() -> None:
    twice, half = bars(drawn(Row("twice", Spread(2, 2, 2), None), Row("half", Spread(0.5, 0.5, 0.5), None)))
    assert twice[1] == pytest.approx(half[1], abs=0.2)
    assert half[0] + half[1] == pytest.approx(twice[0], abs=0.2)


def test_labels_are_text_whatever_is_in_them() -> None:
    picture = drawn(Row("a < b & c", Spread(3, 2, 4), 2.5))
    assert "a < b & c" in [text.text for text in picture.iter(f"{SVG}text")]
    assert len([line for line in picture.iter(f"{SVG}line") if line.attrib["class"] == "aim"]) == 1


@pytest.mark.parametrize("ratio", [Spread(0, 0, 0), Spread(1, 1, 1), Spread(5_000, 4_000, 6_000)])
def test_any_ratio_stays_within_the_picture(ratio: Spread) -> None:
    picture = drawn(Row("any", ratio, 1.0))
    width = float(picture.attrib["viewBox"].split()[2])
    assert all(0 <= x <= x + wide <= width for x, wide in bars(picture))

"""What a self-test concludes from its figures."""

from __future__ import annotations

import pytest

from service.selftest import Figures, Latency, Rate, judge

FIGURES = Figures(
    server_version="18.4",
    durable=True,
    round_trip=Latency(0.05, 0.1),
    commit=Latency(0.2, 0.9),
    commit_unflushed=Latency(0.1, 0.2),
    notification=Latency(0.1, 0.3),
    commands={1: Rate(2_000, Latency(0.5, 1), 0.5), 512: Rate(30_000, Latency(15, 40), 0.95)},
    visible=Latency(2, 9),
)


def test_first_sentence_states_the_throughput_to_expect() -> None:
    first = judge(FIGURES)[0]
    assert "30,000 commands per second" in first
    assert "2,000 with a single caller" in first


@pytest.mark.parametrize(
    ("changes", "conclusion"),
    [
        ({"durable": False}, "Do not run a squad on it"),
        ({"round_trip": Latency(4.0, 9)}, "the round trip to the database, 4.0 ms"),
        ({"commit": Latency(8.1, 20)}, "disk, which takes 8.0 ms"),
        ({"notification": Latency(40, 90)}, "Notifications take 40.0 ms"),
        ({"commands": {1: Rate(9, Latency(1, 1), 0.1), 512: Rate(9, Latency(1, 1), 0.4)}}, "the database:"),
        ({}, "limited by this process, which used 95% of a core"),
        ({}, "nothing stands out"),
    ],
)
def test_each_limit_is_named_only_where_it_applies(changes: dict[str, object], conclusion: str) -> None:
    conclusions = " ".join(judge(FIGURES._replace(**changes)))  # type: ignore[arg-type]
    assert conclusion in conclusions
    if changes:
        assert conclusion not in " ".join(judge(FIGURES))

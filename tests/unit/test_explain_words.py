"""Formatting of actors, times, durations, texts and lists in explanations."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.explain import words


@pytest.mark.parametrize(
    ("actor", "expected"),
    [
        ("agent:email_agent", "email_agent"),
        ("agent:email_agent key:k7", "email_agent (key k7)"),
        ("operator key:k7", "an operator (key k7)"),
        ("agent:my key: ring", "my key: ring"),
        ("cli:zoe", "zoe, on the command line"),
        ("system:clock", "the passing of time"),
        ("system:scheduler", "the scheduler"),
        ("anonymous", "an anonymous caller"),
        ("urn:x:y", "urn:x:y"),
    ],
)
def test_actor_is_named_as_a_person_would_name_it(actor: str, expected: str) -> None:
    assert words.actor_name(actor) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (0.25, "0.25 s"), (119, "119 s"), (150, "2.5 min"), (7_200, "2 h"), (172_800, "2 days")],
)
def test_duration_is_given_in_a_suitable_unit(seconds: float, expected: str) -> None:
    assert words.seconds(seconds) == expected


def test_time_has_milliseconds_only_if_it_has_a_fraction() -> None:
    moment = datetime(2026, 3, 2, 12, 0, 5, tzinfo=UTC)
    assert words.moment(moment) == "2026-03-02 12:00:05Z"
    assert words.moment(moment.replace(microsecond=7_900)) == "2026-03-02 12:00:05.007Z"


def test_quoted_text_is_put_on_one_line_and_truncated() -> None:
    assert words.quote("one\n  two\u2028three") == "“one two three”"
    assert len(words.quote("x" * 1_000)) == words.MAX_QUOTE_CHARACTERS + 2


def test_long_list_names_the_first_items_and_counts_the_rest() -> None:
    assert words.joined([]) == "nothing"
    assert words.joined(["a", "b", "c"]) == "a, b and c"
    assert words.truncated_list(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"

"""How explanations name people, times and amounts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.explain import words


@pytest.mark.parametrize(
    ("actor", "said"),
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
def test_whoever_did_it_is_named_as_a_person_would(actor: str, said: str) -> None:
    assert words.actor_name(actor) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.25, "0.25 s"), (119, "119 s"), (150, "2.5 min"), (7_200, "2 h"), (172_800, "2 days")],
)
def test_durations_are_told_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert words.seconds(seconds) == said


def test_moments_have_milliseconds_where_they_need_them() -> None:
    moment = datetime(2026, 3, 2, 12, 0, 5, tzinfo=UTC)
    assert words.moment(moment) == "2026-03-02 12:00:05Z"
    assert words.moment(moment.replace(microsecond=7_900)) == "2026-03-02 12:00:05.007Z"


def test_what_somebody_wrote_is_one_line_and_not_too_long() -> None:
    assert words.quote("one\n  two\u2028three") == "“one two three”"
    assert len(words.quote("x" * 1_000)) == words.MAX_QUOTE_CHARACTERS + 2


def test_of_many_the_first_are_named_and_the_rest_is_counted() -> None:
    assert words.joined([]) == "nothing"
    assert words.joined(["a", "b", "c"]) == "a, b and c"
    assert words.truncated_list(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"

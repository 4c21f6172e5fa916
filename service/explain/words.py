"""Formatting of times, amounts and texts for sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from eventstore.recorded import Recorded

MAX_QUOTE_CHARACTERS = 120
"""The number of characters shown of a text that a user wrote."""

MAX_LISTED = 10
"""The number of items that a list names."""


def moment(when: datetime) -> str:
    """A time to the second, or to the millisecond if it has a fraction."""
    text = when.strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{when.microsecond // 1000:03d}Z" if when.microsecond else f"{text}Z"


def at(recorded: Recorded) -> str:
    """The time and position of an event."""
    return f"at {moment(recorded.recorded_at)} (position {recorded.position})"


def duration(span: timedelta) -> str:
    """A duration in a suitable unit."""
    return seconds(span.total_seconds())


def seconds(value: float) -> str:
    """A number of seconds in a suitable unit."""
    if value < 120:
        return f"{round(value, 3):g} s"
    if value < 7_200:
        return f"{round(value / 60, 1):g} min"
    return f"{round(value / 3_600, 1):g} h" if value < 172_800 else f"{round(value / 86_400, 1):g} days"


def number(value: int) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}"


def tokens(value: int) -> str:
    """A number of tokens."""
    return "1 token" if value == 1 else f"{value:,} tokens"


def count(value: int, what: str) -> str:
    """A number of things whose plural ends in s."""
    return f"1 {what}" if value == 1 else f"{value:,} {what}s"


def were(value: int) -> str:
    """The verb for a number of things."""
    return "was" if value == 1 else "were"


def line(text: str) -> str:
    """A text that a user wrote, on one line and truncated."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_QUOTE_CHARACTERS else f"{flat[: MAX_QUOTE_CHARACTERS - 1]}…"


def quote(text: str) -> str:
    """A text that a user wrote, in quotation marks."""
    return f"“{line(text)}”"


def resources(claimed: Mapping[str, str]) -> str:
    """Resources, by kind."""
    return truncated_list(f"{kind} {line(value)}" for kind, value in claimed.items())


def truncated_list(items: Iterable[str]) -> str:
    """The first items of a list, and how many more there are."""
    every = list(items)
    rest = len(every) - MAX_LISTED
    return joined([*every[:MAX_LISTED], f"{rest} more"] if rest > 0 else every)


def joined(items: Iterable[str]) -> str:
    """Items joined as in "one, two and three"."""
    *rest, last = list(items) or ["nothing"]
    return f"{', '.join(rest)} and {last}" if rest else last


def actor_name(actor: str) -> str:
    """An actor, as a person would name it."""
    who, key, number = actor.rpartition(" key:")
    if key and " " not in number:
        return f"{_named(who)} (key {number})"
    return _named(actor)


def _named(actor: str) -> str:
    kind, _, name = actor.partition(":")
    match kind, name:
        case "agent", _:
            return name
        case "cli", _:
            return f"{name}, on the command line"
        case "system", "clock":
            return "the passing of time"
        case "system", "service":
            return "the service on startup"
        case "system", _:
            return f"the {name}"
        case "anonymous", "":
            return "an anonymous caller"
        case _, "":
            return f"an {actor}"
        case _:
            return actor

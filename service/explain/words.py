"""How times, amounts and texts are put into sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from eventstore.recorded import Recorded

LONGEST_QUOTE = 120
"""How many characters of what somebody wrote are shown."""

MOST_LISTED = 10
"""How many of many are named."""


def moment(when: datetime) -> str:
    """A moment, to the second, or to the millisecond where it is not at one."""
    text = when.strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{when.microsecond // 1000:03d}Z" if when.microsecond else f"{text}Z"


def at(recorded: Recorded) -> str:
    """When and where an event stands in the log."""
    return f"at {moment(recorded.recorded_at)} (position {recorded.position})"


def duration(span: timedelta) -> str:
    """How long, in the unit that fits."""
    return seconds(span.total_seconds())


def seconds(value: float) -> str:
    """So many seconds, in the unit that fits."""
    if value < 120:
        return f"{round(value, 3):g} s"
    if value < 7_200:
        return f"{round(value / 60, 1):g} min"
    return f"{round(value / 3_600, 1):g} h" if value < 172_800 else f"{round(value / 86_400, 1):g} days"


def number(value: int) -> str:
    """A whole number that can be read."""
    return f"{value:,}"


def tokens(value: int) -> str:
    """So many tokens."""
    return "1 token" if value == 1 else f"{value:,} tokens"


def count(value: int, what: str) -> str:
    """So many of something whose plural ends in s."""
    return f"1 {what}" if value == 1 else f"{value:,} {what}s"


def were(value: int) -> str:
    """The verb of so many."""
    return "was" if value == 1 else "were"


def they(value: int) -> str:
    """So many, named once more, as the subject of a sentence."""
    return "It" if value == 1 else "They"


def line(text: str) -> str:
    """What somebody wrote, on one line and not too long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST_QUOTE else f"{flat[: LONGEST_QUOTE - 1]}…"


def quote(text: str) -> str:
    """What somebody wrote, marked as theirs."""
    return f"“{line(text)}”"


def resources(claimed: Mapping[str, str]) -> str:
    """Resources, by kind."""
    return some(f"{kind} {line(value)}" for kind, value in claimed.items())


def some(items: Iterable[str]) -> str:
    """The first of many, and how many more there are."""
    every = list(items)
    rest = len(every) - MOST_LISTED
    return listed([*every[:MOST_LISTED], f"{rest} more"] if rest > 0 else every)


def listed(items: Iterable[str]) -> str:
    """One, two and three."""
    *rest, last = list(items) or ["nothing"]
    return f"{', '.join(rest)} and {last}" if rest else last


def by(actor: str) -> str:
    """Who did it, as a person would say it."""
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
            return "the service as it started"
        case "system", _:
            return f"the {name}"
        case "anonymous", "":
            return "somebody who gave no name"
        case _, "":
            return f"somebody as {actor}"
        case _:
            return actor

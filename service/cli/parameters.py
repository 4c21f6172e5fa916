"""Parameter types of commands, and their error messages."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import os

_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Folder(click.Path):
    """A folder. An empty path is refused: it would mean the current folder."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return its path."""
        if value == "":
            self.fail("it must name a folder", param, ctx)
        return super().convert(value, param, ctx)


class Text(click.ParamType[str]):
    """Text in UTF-8. Anything else arrives with surrogates, which neither database nor output accepts."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        text = str(click.STRING.convert(value, param, ctx))
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8", param, ctx)
        return text


def take_only_utf8(command: click.Command) -> None:
    """Have a command and its subcommands refuse text that is not UTF-8. File names may be anything."""
    for param in command.params:
        if param.type is click.STRING:
            param.type = Text()
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        take_only_utf8(below)


class Integer(click.IntRange):
    """An integer within bounds, with a name that reads well in click's error messages."""

    name = "integer"


class Seconds(click.FloatRange):
    """A number of seconds. NaN is refused, which click's range does not do."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


class Moment(click.ParamType[datetime]):
    """A time: RFC 3339, or how long ago, such as 90s, 15m, 2h or 1d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time in UTC."""
        if isinstance(value, datetime):
            return value
        try:
            if ago := _AGO.fullmatch(value):
                return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither RFC 3339 nor like 15m, 2h or 1d", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

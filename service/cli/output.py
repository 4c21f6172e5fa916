"""Output of commands: tables that can be searched, and untrusted text that is safe on a terminal."""

from __future__ import annotations

import os

from rich.console import Console
from rich.text import Text

_WIDE = 10_000
"""Wide enough for any row."""


def tables() -> Console:
    """Return a console on stdout for tables; unless it is a terminal, rows are not wrapped, for grep."""
    console = Console()
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _WIDE
    return console


def printable(text: str) -> str:
    """Return untrusted text on one line, with control characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def safe(text: str) -> Text:
    """Return untrusted text for a table cell."""
    return Text(printable(text))

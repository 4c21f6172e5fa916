"""What commands write: tables that can be searched, and texts of others that do a terminal no harm."""

from __future__ import annotations

import os

from rich.console import Console
from rich.text import Text

_WIDE = 10_000
"""Columns enough for any row."""


def tables() -> Console:
    """Stdout, for tables. Where it is no terminal it may be searched, so that no row is folded."""
    console = Console()
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _WIDE
    return console


def printable(text: str) -> str:
    """What somebody sent, on one line, and without what a terminal would obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def safe(text: str) -> Text:
    """What somebody sent, as it may be shown in a table."""
    return Text(printable(text))

"""Moments as text: RFC 3339 in UTC, always to the microsecond, so that equal moments are equal texts."""

from __future__ import annotations

import re
from datetime import UTC, datetime

PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$"
_TEXT = re.compile(PATTERN)


def to_text(moment: datetime) -> str:
    """Format a moment, such as `2026-11-23T08:49:52.902859Z`."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def from_text(text: str) -> datetime:
    """Parse a text that `to_text` returned.

    Raises:
        ValueError: the text does not have that form, or there is no such moment.
    """
    if not _TEXT.fullmatch(text):
        raise ValueError(f"{text!r} is not a time like 2026-11-23T08:49:52.902859Z")
    return datetime.fromisoformat(text)

"""Find U+0000 in JSON: no text column of Postgres can hold it."""

from __future__ import annotations

from typing import Any

import orjson


def contains_nul(data: str) -> bool:
    """Whether a JSON text contains U+0000."""
    return "\\u0000" in data and _contains_nul(orjson.loads(data))


def _contains_nul(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_contains_nul(key) or _contains_nul(item) for key, item in value.items())
        case list():
            return any(map(_contains_nul, value))
        case _:
            return False

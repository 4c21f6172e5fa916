"""JSON through the door: strict on the way in, RFC 3339 in UTC with a Z on the way out."""

from __future__ import annotations

from typing import Any

import orjson


def dumps(value: Any) -> bytes:
    """Any answer as JSON."""
    return orjson.dumps(value, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)


def loads(body: bytes) -> Any:
    """Strictly parsed JSON: no NaN, no lone surrogates, no numbers beyond a double, bounded nesting.

    Raises:
        ValueError: with where and what.
    """
    return orjson.loads(body)

"""JSON through the door: strict on the way in, RFC 3339 in UTC with a Z on the way out."""

from __future__ import annotations

from typing import Any

import orjson

from service.many import Many

MAX_DEPTH = 100
"""How many objects and arrays may lie in each other: more than any field takes, and far fewer than would be
read here and could not be written again."""


_AS_WE_WRITE_IT = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


def dumps(value: Any) -> bytes:
    """Any answer as JSON."""
    return orjson.dumps(value, _made, _AS_WE_WRITE_IT)


def dumps_what_is_made(value: Any) -> bytes | None:
    """An answer as JSON; None where something in it is yet to be made."""
    try:
        return orjson.dumps(value, option=_AS_WE_WRITE_IT)
    except orjson.JSONEncodeError:
        return None


def _made(value: Any) -> Any:
    if type(value) is Many:
        return value.shown()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def loads(body: bytes) -> Any:
    """Strictly parsed JSON: no NaN, no lone surrogates, no numbers beyond a double, bounded nesting.

    Raises:
        ValueError: with where and what.
    """
    return orjson.loads(body)


def is_too_deep(body: bytes, value: Any) -> bool:
    """Whether what was parsed of a body is nested deeper than `MAX_DEPTH`.

    Most bodies are too short for that, or have too few brackets. Only the others are walked through, level
    by level and not by recursion.
    """
    if len(body) <= 2 * MAX_DEPTH or body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if (kind := type(inner)) is dict or kind is list
        ]
        if not level:
            return False
    return True

"""JSON: strict parsing of requests; answers with times in RFC 3339, in UTC with a Z."""

from __future__ import annotations

from typing import Any

import orjson

from service.lazy_rows import LazyRows

MAX_DEPTH = 100
"""How deeply objects and arrays may be nested: more than any field allows, and far less than what could be
parsed but not serialized again."""


_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


def dumps(value: Any) -> bytes:
    """Serialize any answer."""
    return orjson.dumps(value, _default, _OPTIONS)


def dumps_if_complete(value: Any) -> bytes | None:
    """Serialize an answer; return None if it contains a `LazyRows`, whose rows are yet to be made."""
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except orjson.JSONEncodeError:
        return None


def _default(value: Any) -> Any:
    if type(value) is LazyRows:
        return value.shown()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def loads(body: bytes) -> Any:
    """Parse JSON strictly: no NaN, no lone surrogates, no numbers beyond a double, bounded nesting.

    Raises:
        ValueError: it is not valid; the message says what is wrong and where.
    """
    return orjson.loads(body)


def is_too_deep(body: bytes, value: Any) -> bool:
    """Return whether a body's parsed value is nested deeper than `MAX_DEPTH`.

    Most bodies are too short for that or have too few brackets. Only the others are traversed, level by
    level rather than by recursion.
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

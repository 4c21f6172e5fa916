"""Check that the tables can hold an event's values: ids, numbers, times, texts and JSON.

The service accepts nothing else. An imported log may hold anything and can never be changed: a projection
that cannot apply one of its events, or code that reads or computes with the resulting row, would fail there
for good.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson
from msgspec import inspect

from eventstore.events import JobDefinition, TaskCreated, TaskUpdated
from eventstore.ids import ID

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_STORED_JSON_DEPTH = 100
"""The maximum nesting depth of JSON. The service accepts 64 levels, and its answers add a few more."""

_BIGINT, _INTEGER = (-(2**63), 2**63 - 1), (-(2**31), 2**31 - 1)
_TOKEN_BOUNDS = (-(2**53), 2**53 - 1)
"""Far beyond what the service accepts, and a thousand such values still add up within `_BIGINT`."""

_BOUNDS = {
    **dict.fromkeys(
        ("tokens", "tokens_used", "tokens_reserved", "input_tokens", "output_tokens"), _TOKEN_BOUNDS
    ),
    **dict.fromkeys(("priority", "percent", "warning_percents"), _INTEGER),
    "reset_hour": (0, 23),
    **dict.fromkeys(("retries", "attempt", "attempts", "attempts_allowed"), (0, 1_000)),
}
"""The minimum and maximum of an integer, by field name; `_BIGINT` for all others."""

_DURATION_BOUNDS = (0, 10**9)
"""Seconds or minutes that can be added to or subtracted from a moment without overflow."""

_MIN_INTERVAL_SECONDS = 0.1
"""The minimum that the service accepts. The ticks of a more frequent job could not all be recorded."""

MAX_DAY_OFFSET = timedelta(days=366)
"""How far a budget day may begin from when it is recorded. No clock that was corrected was further off."""

MAX_INDEXED_BYTES = 2_000
"""No index accepts a much longer text. The service accepts less than half of it."""

_INDEXED = frozenset(("category", "job", "model", "task_id", "to_agent"))
"""Fields that are indexed in the read tables but not in the log. Where the log has an index too, it refuses
a text that is too long for it."""

_IDS = frozenset(
    ("agent_id", "conflict_id", "email_id", "message_id", "operation_id", "reservation_id", "run_id")
)
"""Fields that refer to a row of a table whose ids are UUIDs."""

_LISTS_OF_IDS = frozenset(("emails", "messages"))
_OF_TASKS = (TaskCreated, TaskUpdated)
"""Events whose `task_id` is that of a task on the board; in others it is any text that a client chose."""


class _Fields(NamedTuple):
    """The fields of a structure that may be out of bounds, with the minimum and maximum of each."""

    ids: tuple[str, ...]
    numbers: tuple[tuple[str, float, int], ...]
    times: tuple[str, ...]
    json: tuple[str, ...]
    texts: tuple[str, ...]
    others: tuple[tuple[str, int, int], ...]
    """Lists of numbers, objects of numbers, and structures."""


def out_of_bounds(event: msgspec.Struct) -> str | None:
    """Return the first field of an event that no table could hold; None if there is none.

    An hour that no day has counts as out of bounds, and so does a job without a schedule or with two: no
    process could start with them.
    """
    fields = _fields(type(event))
    if fields is None:
        return None
    if isinstance(event, JobDefinition) and (event.cron is None) == (event.every_seconds is None):
        return "cron"
    ids, numbers, times, json, texts, others = fields
    for name in ids:
        value = getattr(event, name)
        if value is not None and not all(map(ID.fullmatch, value if isinstance(value, list) else (value,))):
            return name
    for name, minimum, maximum in numbers:
        value = getattr(event, name)
        if value is not None and not minimum <= value <= maximum:
            return name
    for name in times:
        value = getattr(event, name)
        if value is not None and not _is_valid_time(value):
            return name
    for name in json:
        value = getattr(event, name)
        if value and not _is_storable_json(value):
            return name
    for name in texts:
        value = getattr(event, name)
        if value is not None and len(value.encode()) > MAX_INDEXED_BYTES:
            return name
    for name, minimum, maximum in others:
        value = getattr(event, name)
        if isinstance(value, msgspec.Struct):
            if inside := out_of_bounds(value):
                return f"{name}.{inside}"
        elif not all(
            minimum <= each <= maximum for each in (value.values() if isinstance(value, dict) else value)
        ):
            return name
    return None


def _is_valid_time(time: datetime) -> bool:
    """Whether a time has a time zone and can be expressed in UTC, where years end at 9999."""
    if time.tzinfo is None:
        return False
    try:
        time.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _is_storable_json(value: Any) -> bool:
    try:
        text = orjson.dumps(value)
    except TypeError:
        # An integer beyond 64 bits, or deeper nesting than orjson supports.
        return False
    # A level takes at least two characters.
    return len(text) <= 2 * MAX_STORED_JSON_DEPTH or _fits_depth(value, MAX_STORED_JSON_DEPTH)


def _fits_depth(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inside: Iterable[Any] = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_fits_depth(each, levels - 1) for each in inside)


@cache
def _fields(kind: type[msgspec.Struct]) -> _Fields | None:
    """Return those of a kind of structure, or None if it has none."""
    ids, times, json, texts, others = [], [], [], [], []
    numbers: list[tuple[str, float, int]] = []
    for field in msgspec.structs.fields(kind):
        name, bounded = field.name, (field.name, *_BOUNDS.get(field.name, _BIGINT))
        if name in _IDS or name in _LISTS_OF_IDS or (name == "task_id" and issubclass(kind, _OF_TASKS)):
            ids.append(name)
        match _non_optional_type(field.type):
            case inspect.IntType():
                numbers.append(bounded)
            case inspect.FloatType():
                minimum, maximum = _DURATION_BOUNDS
                numbers.append(
                    (name, _MIN_INTERVAL_SECONDS if name == "every_seconds" else minimum, maximum)
                )
            case inspect.StrType() if name in _INDEXED:
                texts.append(name)
            case inspect.DateTimeType():
                times.append(name)
            case inspect.DictType(value_type=inspect.AnyType()):
                json.append(name)
            case (
                inspect.DictType(value_type=inspect.IntType())
                | inspect.ListType(item_type=inspect.IntType())
            ):
                others.append(bounded)
            case inspect.StructType():
                others.append(bounded)
            case _:
                pass
    found = _Fields(tuple(ids), tuple(numbers), tuple(times), tuple(json), tuple(texts), tuple(others))
    return found if any(found) else None


def _non_optional_type(annotated: Any) -> inspect.Type:
    """Return the type of a field, without the None of an optional one."""
    whole = inspect.type_info(annotated)
    if not isinstance(whole, inspect.UnionType):
        return whole
    [main] = [each for each in whole.types if not isinstance(each, inspect.NoneType)]
    return main

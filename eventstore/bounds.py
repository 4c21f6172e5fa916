"""Whether tables can hold what an event says: ids, numbers, times and texts, and the JSON that it carries.

The service lets nothing else in. A log that was imported may say anything, and can never be changed: a
projection that cannot take one of its events, or whoever reads a row that came of it or reckons with it,
would stop there for good.
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

MOST_LEVELS = 100
"""How deep JSON may be nested. The service lets in 64 levels, and its answers have a few more around."""

_BIGINT, _INTEGER = (-(2**63), 2**63 - 1), (-(2**31), 2**31 - 1)
_SUMMED = (-(2**53), 2**53 - 1)
"""Far beyond what the service lets in, and a thousand of them can be added up within `_BIGINT`."""

_BOUNDS = {
    **dict.fromkeys(("tokens", "tokens_used", "tokens_reserved"), _SUMMED),
    **dict.fromkeys(("priority", "percent", "warning_percents"), _INTEGER),
    "reset_hour": (0, 23),
    **dict.fromkeys(("retries", "attempt", "attempts", "attempts_allowed"), (0, 1_000)),
}
"""The least and the most that a number may be, by the name of its field, where that is not `_BIGINT`."""

_SPAN = (0, 10**9)
"""Of seconds or minutes: added to a moment or taken from it, they still lead to one."""

_SHORTEST_INTERVAL_SECONDS = 0.1
"""As short as the service lets in. Of a job that ticks more often, nobody could tell of every tick."""

FARTHEST_DAY = timedelta(days=366)
"""So far from when it is recorded a budget day may begin. No clock that was put right was further off."""

MOST_INDEXED_BYTES = 2_000
"""No index takes a text of much more. The service lets in less than half of it."""

_INDEXED = frozenset(("category", "job", "task_id", "to_agent"))
"""Fields that the read tables have an index of, and the log has none: what is too long for that one is
refused by the log itself."""

_IDS = frozenset(
    ("agent_id", "conflict_id", "email_id", "message_id", "operation_id", "reservation_id", "run_id")
)
"""Fields that name a row of a table whose ids are UUIDs."""

_LISTS_OF_IDS = frozenset(("emails", "messages"))
_OF_TASKS = (TaskCreated, TaskUpdated)
"""Whose `task_id` names one of our tasks; in other events it may be anybody's."""


class _Fields(NamedTuple):
    """The fields of a structure that may be out of bounds, each with the least and the most it may be."""

    ids: tuple[str, ...]
    numbers: tuple[tuple[str, float, int], ...]
    times: tuple[str, ...]
    json: tuple[str, ...]
    texts: tuple[str, ...]
    others: tuple[tuple[str, int, int], ...]
    """Lists of numbers, objects of numbers, and structures."""


def out_of_bounds(event: msgspec.Struct) -> str | None:
    """The first field of an event that no table could hold; None where all is well.

    So it is with an hour that no day has, and with a job that has no schedule or two: none starts by them.
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
    for name, least, most in numbers:
        value = getattr(event, name)
        if value is not None and not least <= value <= most:
            return name
    for name in times:
        value = getattr(event, name)
        if value is not None and not _is_one_moment(value):
            return name
    for name in json:
        value = getattr(event, name)
        if value and not _can_be_written(value):
            return name
    for name in texts:
        value = getattr(event, name)
        if value is not None and len(value.encode()) > MOST_INDEXED_BYTES:
            return name
    for name, least, most in others:
        value = getattr(event, name)
        if isinstance(value, msgspec.Struct):
            if inside := out_of_bounds(value):
                return f"{name}.{inside}"
        elif not all(
            least <= each <= most for each in (value.values() if isinstance(value, dict) else value)
        ):
            return name
    return None


def _is_one_moment(time: datetime) -> bool:
    """Whether it says which moment it means, and UTC has a name for that: years end at 9999."""
    if time.tzinfo is None:
        return False
    try:
        time.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _can_be_written(value: Any) -> bool:
    try:
        text = orjson.dumps(value)
    except TypeError:
        # A whole number beyond 64 bits, or more levels than it can count.
        return False
    # A level takes two characters at least.
    return len(text) <= 2 * MOST_LEVELS or _levels_fit(value, MOST_LEVELS)


def _levels_fit(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inside: Iterable[Any] = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_levels_fit(each, levels - 1) for each in inside)


@cache
def _fields(kind: type[msgspec.Struct]) -> _Fields | None:
    """Those of a kind of structure; None where it has none."""
    ids, times, json, texts, others = [], [], [], [], []
    numbers: list[tuple[str, float, int]] = []
    for field in msgspec.structs.fields(kind):
        name, bounded = field.name, (field.name, *_BOUNDS.get(field.name, _BIGINT))
        if name in _IDS or name in _LISTS_OF_IDS or (name == "task_id" and issubclass(kind, _OF_TASKS)):
            ids.append(name)
        match _main_type(field.type):
            case inspect.IntType():
                numbers.append(bounded)
            case inspect.FloatType():
                least, most = _SPAN
                numbers.append(
                    (name, _SHORTEST_INTERVAL_SECONDS if name == "every_seconds" else least, most)
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


def _main_type(annotated: Any) -> inspect.Type:
    """The type of a field; where it may be null, of what is there otherwise."""
    whole = inspect.type_info(annotated)
    if not isinstance(whole, inspect.UnionType):
        return whole
    [main] = [each for each in whole.types if not isinstance(each, inspect.NoneType)]
    return main

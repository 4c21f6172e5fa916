"""Validated value types of commands: what a name, a text, a number of tokens may be.

Everything that Postgres or JSON cannot store, or that people cannot read, is rejected here.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

MAX_NAME_CHARACTERS = 100
MAX_TEXT_CHARACTERS = 100_000
MAX_JSON_DEPTH = 64
MAX_TOKENS = 10**12
"""Far beyond any day's use, and small enough that sums stay far below 64 bits."""
MAX_TTL_SECONDS = 7 * 24 * 3600.0
MIN_WINDOW_SECONDS = 0.1
MAX_RESOURCES = 50

_NO_CONTROL = r"^[^\x00-\x1f\x7f]+$"
# Tools that read the OpenAPI document add the length to a lone repetition, which takes a second to compile.
_NO_NUL = r"^(|[^\x00]+)$"
_UUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
_PORT = r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_HOST = r"[^\s\x00-\x1f\x7f/?#@:\[\]\\]+|\[[0-9A-Fa-f:.]+(%[0-9A-Za-z%._~-]+)?\]"
_AUTHORITY = rf"^https?://([^\s\x00-\x1f\x7f/?#@\[\]\\]*@)?({_HOST})(:({_PORT}))?"
_HTTP_URL = _AUTHORITY + r"([/?#][^\s\x00-\x1f\x7f]*)?$"

PATTERNS_IN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        _NO_CONTROL: "must be one line of text, without control characters",
        _NO_NUL: "must not contain U+0000",
        _UUID: "must be a UUID",
        _HTTP_URL: "must be an http or https URL",
    }
)
"""Error messages for patterns: what each allows."""


_TYPES_IN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "dict_type": "must be an object, with names and values",
        "list_type": "must be a list",
        "too_short": "must have {min_length} or more entries",
        "too_long": "must have at most {max_length} entries",
    }
)
"""Error messages where pydantic's own use Python's terms."""


def in_words(fault: ErrorDetails) -> str:
    """Return a readable message for an error that pydantic found."""
    context = fault.get("ctx", {})
    if template := _TYPES_IN_WORDS.get(fault["type"]):
        return template.format_map(context)
    message = PATTERNS_IN_WORDS.get(context.get("pattern", "")) or fault["msg"].removeprefix(
        "Value error, "
    )
    return message[:1].lower() + message[1:]


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MIN_NUMBER, _NUMBER_BOUND = -(2**63), 2**64
_BEYOND_RANGE = "numbers must lie between -2^63 and 2^64; send larger ones as text"


def storable(text: str) -> str:
    """Return a text as Postgres can store it: without U+0000, and with "?" for each lone surrogate."""
    return text.replace("\x00", "").encode(errors="replace").decode()


def _trimmed(value: str) -> str:
    if value != value.strip():
        raise ValueError("must not begin or end with whitespace")
    return value


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=_NO_CONTROL),
    AfterValidator(_trimmed),
]
"""A name of an agent, an action, a category: one line."""

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=1_000, pattern=_NO_CONTROL)]
"""One line of text, such as a title."""

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS, pattern=_NO_NUL)]
"""Any text."""

Id = Annotated[
    str,
    StringConstraints(pattern=_UUID, to_lower=True),
]
"""A UUID as text."""

ExternalId = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=_NO_CONTROL)]
"""An id that was assigned elsewhere, such as a task's or a Gmail message's."""

Url = Annotated[
    str,
    StringConstraints(max_length=2_000, pattern=_HTTP_URL),
]
"""An http or https URL."""

Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
"""A number of LLM tokens."""

PositiveTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
"""A number of LLM tokens, at least 1."""

TtlSeconds = Annotated[float, Field(gt=0, le=MAX_TTL_SECONDS, allow_inf_nan=False)]
"""A time to live in seconds, at most a week."""

WindowSeconds = Annotated[float, Field(ge=MIN_WINDOW_SECONDS, le=MAX_TTL_SECONDS, allow_inf_nan=False)]
"""How long a claim lasts without renewal, in seconds: long enough that it can be renewed in time."""

Position = Annotated[int, Field(ge=1, le=2**63 - 1)]
"""The position of an event in the log."""

Priority = Annotated[int, Field(ge=-1_000, le=1_000)]
"""An agent's priority; higher goes first."""


def check_json(value: Any, depth: int = MAX_JSON_DEPTH) -> Any:
    """Reject JSON that Postgres would not return as it was stored.

    Args:
        value: parsed JSON.
        depth: how many more levels of objects and arrays are allowed.

    Raises:
        ValueError: says what is wrong.
    """
    match value:
        case str():
            if _UNSTORABLE.search(value):
                raise ValueError("text must not contain U+0000 or lone surrogates")
        case dict():
            if depth == 0:
                raise ValueError(f"must not be nested deeper than {MAX_JSON_DEPTH} levels")
            for key, item in value.items():
                check_json(key, depth - 1)
                check_json(item, depth - 1)
        case list():
            if depth == 0:
                raise ValueError(f"must not be nested deeper than {MAX_JSON_DEPTH} levels")
            for item in value:
                check_json(item, depth - 1)
        case int():
            if not _MIN_NUMBER <= value < _NUMBER_BOUND:
                raise ValueError(_BEYOND_RANGE)
        case float():
            # Parsers turn integers beyond 64 bits into floats and so change them. NaN fails the comparison.
            if not _MIN_NUMBER < value < _NUMBER_BOUND:
                raise ValueError(_BEYOND_RANGE)
        case _:
            pass
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]
"""A JSON object of any shape that Postgres can store."""

Resources = Annotated[
    dict[
        Annotated[
            str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=_NO_CONTROL)
        ],
        Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=_NO_CONTROL)],
    ],
    Field(min_length=1, max_length=MAX_RESOURCES),
]
"""Resources by kind, such as {"emailId": "email-123"}."""


_NOT_ZONES = frozenset({"localtime", "posixrules", "Factory"})
"""Files beside those of the zones that name the machine's own zone, or none."""


def check_timezone(name: str) -> str:
    """Reject what is not the name of an IANA time zone."""
    if name in _NOT_ZONES:
        raise ValueError("must be the name of an IANA time zone, which means the same on every machine")
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("must be the name of an IANA time zone, such as Europe/Berlin") from error
    return name


Timezone = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(check_timezone)]
"""The name of an IANA time zone."""


_TIME: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)


def _time(value: object) -> object:
    """Parse a written time. Pydantic would accept a bare number as seconds since 1970."""
    if isinstance(value, datetime):
        return value
    if not re.match(r"\d{4}-\d\d-\d\d[Tt ]", str(value)):
        raise ValueError("must be a time such as 2026-01-31T09:00:00Z")
    if re.search(r":\d\d(\.\d+)? \d\d:?\d\d$", str(value)):
        raise ValueError(
            "must be a time such as 2026-01-31T09:00:00Z; in a URL the + of a zone is written %2B"
        )
    try:
        return _TIME.validate_python(value, strict=False)
    except ValidationError as error:
        raise ValueError(in_words(error.errors()[0])) from error


def _in_range(moment: datetime) -> datetime:
    if not 1970 <= moment.year <= 9998:
        raise ValueError("must lie between the years 1970 and 9998")
    return moment


Moment = Annotated[AwareDatetime, BeforeValidator(_time), AfterValidator(_in_range)]
"""A moment, in RFC 3339."""


def _day(value: object) -> date:
    """Parse a written day. Pydantic would accept a bare number as seconds since 1970."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        return date.fromisoformat(value)
    raise ValueError("must be a day such as 2026-01-31")


Day = Annotated[date, BeforeValidator(_day)]
"""A day, in ISO 8601."""

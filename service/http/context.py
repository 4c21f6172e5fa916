"""What every handler can reach, and how a request becomes a command and an answer."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar, cast

from aiohttp import hdrs, web
from multidict import istr
from pydantic import BaseModel, TypeAdapter, ValidationError
from yarl import URL

from service.http import json
from service.http.long import LongAnswers
from service.http.packed import too_large, unpacked
from service.http.problems import Problem, from_validation, wrong
from service.http.reply import CORRELATION_HEADER
from service.http.scope import caller
from service.http.turns import Turns
from service.logs import CORRELATION
from service.requests import Print
from service.writing.batch import new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multidict import MultiMapping

    from eventstore.listener import Listener
    from projections.projector import Projector
    from service.channels import Channels
    from service.clock import DatabaseClock
    from service.http.auth import Door
    from service.http.cors import Cors
    from service.http.open_streams import OpenStreams
    from service.metrics import Metrics
    from service.reading import ReadTables
    from service.scheduling.scheduler import Scheduler
    from service.settings import Settings
    from service.snapshotter import Snapshotter
    from service.tail import Tail
    from service.writing.writer import Writer

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

MAX_BODY_BYTES = 1024 * 1024

NO_PRINT = Print()
"""Of a request without an idempotency key."""

LOOK_BACK_AT_ONCE = 2
"""How many requests fold the past at once; it is work, and the present goes on beside it."""

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""

KNOWN_QUERIES = 200
"""So many query strings need not be parsed again: who asks again and again asks the same, as a rule."""

_IDEMPOTENCY_KEY = istr("Idempotency-Key")
_CORRELATION_HEADERS = (CORRELATION_HEADER, istr("X-Request-Id"))

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_CORRELATION = re.compile(r"[\x21-\x7e]{1,100}")


@dataclass
class Services:
    """The running parts that handlers use."""

    settings: Settings
    writer: Writer
    tables: ReadTables
    tail: Tail
    channels: Channels
    clock: DatabaseClock
    listener: Listener
    projector: Projector
    scheduler: Scheduler
    snapshotter: Snapshotter
    metrics: Metrics
    door: Door
    cors: Cors | None
    """Which web pages may use the API, where any may."""
    streams: OpenStreams
    stopping: bool = False
    judging: Turns = field(default_factory=Turns)
    """Of histories, under other rules."""
    long: LongAnswers = field(default_factory=LongAnswers)
    looking_back: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LOOK_BACK_AT_ONCE))


SERVICES = web.AppKey("services", Services)


async def body_of(request: web.Request) -> bytes:
    """The request's body, which must be JSON where there is one.

    Raises:
        Problem: it is too large, it cannot be read, or it says that it is something else.
    """
    if not request.can_read_body:
        return b""
    try:
        if request.content.is_eof():
            body = await request.read()
        else:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
    except TimeoutError as error:
        # What is left of it, if anything, is not waited for either.
        raise Problem("request_timeout", f"the body took more than {BODY_SECONDS:g} seconds") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large(MAX_BODY_BYTES) from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Problem("bad_request", "the body broke off") from error
    # A web page can post a form or plain text to a service on this machine without asking; JSON it cannot.
    if body and (request.content_type != "application/json" or not _is_utf8(request.charset)):
        raise Problem(
            "unsupported_media_type", "send the body in UTF-8 with Content-Type: application/json"
        )
    coding = request.headers.get(hdrs.CONTENT_ENCODING)
    return unpacked(body, coding.strip().lower(), MAX_BODY_BYTES) if body and coding else body


def _is_utf8(charset: str | None) -> bool:
    return charset is None or charset.lower() in ("utf-8", "utf8", "us-ascii")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; an empty body is an empty object.

    Raises:
        Problem: it is not JSON, not an object, or nested too deep.
    """
    if not body:
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem("malformed_json", str(error)) from error
    if not isinstance(value, dict):
        raise wrong("body", "must be a JSON object")
    if json.is_too_deep(body, value):
        raise wrong("body", f"must not be nested deeper than {json.MAX_DEPTH} levels")
    return value


def parse_command(
    model: type[M],
    fields: dict[str, Any],
    path: Mapping[str, str] | None = None,
    bound: Mapping[str, str] | None = None,
) -> M:
    """A command from a body's fields and those that stand in the path.

    Args:
        model: which command.
        fields: the body's.
        path: what stands in the path, by parameter.
        bound: the command's field by path parameter, where it is called otherwise.

    Raises:
        Problem: a field is missing, wrong or unknown; one of the path is told by its name there.
    """
    in_path: dict[str, str] = {}
    if path:
        in_path = {(bound or {}).get(name, name): name for name in path}
        for taken in in_path.keys() & fields.keys():
            raise wrong(taken, "stands in the path, not in the body")
        fields = {**fields, **{field: path[name] for field, name in in_path.items()}}
    try:
        # As `model_validate` does, which asks about its own arguments first: a third of the time it takes.
        return model.__pydantic_validator__.validate_python(fields, strict=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise from_validation(error, names=in_path) from error


def parse_query(model: type[M], request: web.Request) -> M:
    """The query string as a model, which is frozen: whoever asks the same again gets the same.

    Raises:
        Problem: a parameter is wrong, unknown, or named twice.
    """
    return cast("M", _parsed(model, request.rel_url.raw_query_string))


@lru_cache(maxsize=KNOWN_QUERIES)
def _parsed(model: type[BaseModel], query_string: str) -> BaseModel:
    query = query_of(query_string)
    if len(query) != len(set(query)):
        twice = next(name for name in query if len(query.getall(name)) > 1)
        raise wrong(twice, "must be named once")
    try:
        return model.model_validate(dict(query))
    except ValidationError as error:
        raise from_validation(error, "query") from error


def query_of(query_string: str) -> MultiMapping[str]:
    """What a query string says, as it stands in the request: percent-encoded."""
    return URL.build(query_string=query_string, encoded=True).query


def parse_path(kind: TypeAdapter[T], request: web.Request, name: str) -> T:
    """What stands in the path under that name.

    Raises:
        Problem: it is not what it must be.
    """
    try:
        return kind.validate_python(request.match_info[name])
    except ValidationError as error:
        raise from_validation(error, name) from error


def idempotency_key(headers: MultiMapping[str]) -> str | None:
    """The request's idempotency key.

    Raises:
        Problem: it is not 1 to 200 visible ASCII characters, or there are several.
    """
    key = headers.get(_IDEMPOTENCY_KEY)
    if key is not None:
        if not _KEY.fullmatch(key):
            raise wrong("Idempotency-Key", "must be 1 to 200 visible ASCII characters")
        if len(headers.getall(_IDEMPOTENCY_KEY)) > 1:
            raise wrong("Idempotency-Key", "must be named once")
    agent = caller().agent
    # Each agent has keys of its own, so that none can use up another's. No key that is sent has a space.
    return key if key is None or agent is None else f"agent:{agent} {key}"


def correlation_id() -> str:
    """What ties this request's answer, its events and its log lines together."""
    return CORRELATION.get()


def correlate(headers: Mapping[str, str]) -> str:
    """Gives the request that this task answers its correlation id: the caller's own, or a fresh one."""
    found = _given_or_new(headers)
    CORRELATION.set(found)
    return found


def _given_or_new(headers: Mapping[str, str]) -> str:
    for name in _CORRELATION_HEADERS:
        given = headers.get(name)
        if given and _CORRELATION.fullmatch(given):
            return given
    return new_id()


def fingerprint(method: str, path: str, body: bytes) -> Print:
    """What an idempotency key is bound to."""
    return Print(hash_of(method, path, body), hash_of(method, path, b""))


def hash_of(method: str, path: str, body: bytes) -> str:
    """One of the hashes in a `Print`."""
    return sha256(b"\n".join((method.encode(), path.encode(), body))).hexdigest()

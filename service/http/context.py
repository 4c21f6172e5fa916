"""What every handler has access to, and how a request is parsed into a command."""

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
from service.http.compression import decompress, too_large
from service.http.concurrency import ConcurrencyLimit
from service.http.long_answers import LongAnswers
from service.http.problems import Problem, from_validation, invalid_field
from service.http.reply import CORRELATION_HEADER
from service.http.scope import caller
from service.logs import CORRELATION
from service.requests import Fingerprints
from service.writing.batch import new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multidict import MultiMapping

    from eventstore.listener import Listener
    from projections.projector import Projector
    from service.arrivals import Arrivals
    from service.channels import Channels
    from service.clock import DatabaseClock
    from service.http.auth import Authenticator
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

NO_FINGERPRINTS = Fingerprints()
"""The print of a request without an idempotency key."""

MAX_CONCURRENT_LOOK_BACKS = 2
"""How many requests may fold past states at once: it takes CPU time that live requests need."""

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""

MAX_CACHED_QUERIES = 200
"""How many parsed query strings are cached: callers that poll usually repeat the same query."""

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
    arrivals: Arrivals
    clock: DatabaseClock
    listener: Listener
    projector: Projector
    scheduler: Scheduler
    snapshotter: Snapshotter
    metrics: Metrics
    authenticator: Authenticator
    cors: Cors | None
    """Which web pages may use the API; None if none may."""
    streams: OpenStreams
    stopping: bool = False
    judging: ConcurrencyLimit = field(default_factory=ConcurrencyLimit)
    """Turns for what-if evaluations."""
    long: LongAnswers = field(default_factory=LongAnswers)
    looking_back: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_LOOK_BACKS)
    )


SERVICES = web.AppKey("services", Services)


async def body_of(request: web.Request) -> bytes:
    """Return the request's body, which must be JSON if there is one.

    Raises:
        Problem: it is too large, cannot be read, or its headers declare another type.
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
        # The rest of the body, if there is any, is not waited for either.
        raise Problem("request_timeout", f"the body took more than {BODY_SECONDS:g} seconds") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large(MAX_BODY_BYTES) from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Problem("bad_request", "the body is incomplete") from error
    # Without a preflight, a web page can post forms and plain text to a service on this machine, not JSON.
    if body and (request.content_type != "application/json" or not _is_utf8(request.charset)):
        raise Problem(
            "unsupported_media_type", "send the body in UTF-8 with Content-Type: application/json"
        )
    coding = request.headers.get(hdrs.CONTENT_ENCODING)
    return decompress(body, coding.strip().lower(), MAX_BODY_BYTES) if body and coding else body


def _is_utf8(charset: str | None) -> bool:
    return charset is None or charset.lower() in ("utf-8", "utf8", "us-ascii")


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; an empty body is an empty object.

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
        raise invalid_field("body", "must be a JSON object")
    if json.is_too_deep(body, value):
        raise invalid_field("body", f"must not be nested deeper than {json.MAX_DEPTH} levels")
    return value


def parse_command(
    model: type[M],
    fields: dict[str, Any],
    path: Mapping[str, str] | None = None,
    bound: Mapping[str, str] | None = None,
) -> M:
    """Make a command from the body's fields and the path parameters.

    Args:
        model: the command's class.
        fields: the body's fields.
        path: the path parameters, by name.
        bound: the command's field by path parameter, where the names differ.

    Raises:
        Problem: a field is missing, wrong or unknown. Path parameters are reported under their own names.
    """
    in_path: dict[str, str] = {}
    if path:
        in_path = {(bound or {}).get(name, name): name for name in path}
        for taken in in_path.keys() & fields.keys():
            raise invalid_field(taken, "must be given in the path, not in the body")
        fields = {**fields, **{field: path[name] for field, name in in_path.items()}}
    try:
        # What `model_validate` calls. Its checks of its own arguments take a third of its time.
        return model.__pydantic_validator__.validate_python(fields, strict=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise from_validation(error, names=in_path) from error


def parse_query(model: type[M], request: web.Request) -> M:
    """Parse the query string into a model, which must be frozen because results are cached.

    Raises:
        Problem: a parameter is wrong, unknown, or given twice.
    """
    return cast("M", _parsed(model, request.rel_url.raw_query_string))


@lru_cache(maxsize=MAX_CACHED_QUERIES)
def _parsed(model: type[BaseModel], query_string: str) -> BaseModel:
    query = query_of(query_string)
    if len(query) != len(set(query)):
        twice = next(name for name in query if len(query.getall(name)) > 1)
        raise invalid_field(twice, "must be given only once")
    try:
        return model.model_validate(dict(query))
    except ValidationError as error:
        raise from_validation(error, "query") from error


def query_of(query_string: str) -> MultiMapping[str]:
    """Parse a query string as it is in the request: percent-encoded."""
    return URL.build(query_string=query_string, encoded=True).query


def parse_path(kind: TypeAdapter[T], request: web.Request, name: str) -> T:
    """Return the path parameter with this name.

    Raises:
        Problem: its value is not valid.
    """
    try:
        return kind.validate_python(request.match_info[name])
    except ValidationError as error:
        raise from_validation(error, name) from error


def idempotency_key(headers: MultiMapping[str]) -> str | None:
    """Return the request's idempotency key, if it has one.

    Raises:
        Problem: it is not 1 to 200 visible ASCII characters, or there are several.
    """
    key = headers.get(_IDEMPOTENCY_KEY)
    if key is not None:
        if not _KEY.fullmatch(key):
            raise invalid_field("Idempotency-Key", "must be 1 to 200 visible ASCII characters")
        if len(headers.getall(_IDEMPOTENCY_KEY)) > 1:
            raise invalid_field("Idempotency-Key", "must be given only once")
    agent = caller().agent
    # A namespace per agent, so that none can use up another's keys. A key in a header never has a space.
    return key if key is None or agent is None else f"agent:{agent} {key}"


def correlation_id() -> str:
    """Return the id that ties this request's answer, its events and its log lines together."""
    return CORRELATION.get()


def correlate(headers: Mapping[str, str]) -> str:
    """Set the correlation id of the request that this task answers: the caller's own, or a new one."""
    found = _given_or_new(headers)
    CORRELATION.set(found)
    return found


def _given_or_new(headers: Mapping[str, str]) -> str:
    for name in _CORRELATION_HEADERS:
        given = headers.get(name)
        if given and _CORRELATION.fullmatch(given):
            return given
    return new_id()


def fingerprint(method: str, path: str, body: bytes) -> Fingerprints:
    """Return what an idempotency key is bound to."""
    return Fingerprints(hash_of(method, path, body), hash_of(method, path, b""))


def hash_of(method: str, path: str, body: bytes) -> str:
    """Return one of the hashes in a `Fingerprints`."""
    return sha256(b"\n".join((method.encode(), path.encode(), body))).hexdigest()

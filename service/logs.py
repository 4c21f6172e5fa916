"""How the service tells its own story: for people by default, as JSON for machines.

Every line says which request it belongs to, where it belongs to one: by the id that is in the answer's
header and in the events as well. No line holds a secret, or anything that somebody sent
(`eventstore.telling`).
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import structlog

from eventstore.describing import describe_at_length

if TYPE_CHECKING:
    import asyncio

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

CORRELATION: ContextVar[str] = ContextVar("correlation_id")
"""Of the request that is being answered. Whoever works for a request elsewhere says so: `about`."""


def about(correlation_id: str) -> dict[str, str]:
    """What a log line takes as `extra`, to be told as part of that request."""
    return {"correlation_id": correlation_id}


def configure(log_format: LogFormat = "console", level: LogLevel = "info") -> None:
    """Sends all log lines to stderr in one format."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The driver and its pools report every lost connection on their own, in the server's words, which may
    # repeat a row. Those who use them say it once.
    for name in ("psycopg", "psycopg.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def tell_of_the_unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For faults that nobody waits for; the event loop's own way shows the exception's text."""
    del loop
    _log.error("%s", context.get("message", "something failed"), exc_info=context.get("exception"))


def _with_correlation(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if "correlation_id" not in event and (known := CORRELATION.get("")):
        event["correlation_id"] = known
    return event


def _with_exception(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given
    if given is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = describe_at_length(error)
    return event


_SHARED: list[structlog.typing.Processor] = [
    structlog.stdlib.ExtraAdder(allow=("correlation_id",)),
    _with_correlation,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _with_exception,
]
_log = logging.getLogger(__name__)

"""Logging: readable text by default, or JSON.

A line that belongs to a request carries its correlation id, as do the answer's header and the events. No
line contains a secret, or anything that a client sent (`eventstore.redaction`).
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import structlog

from eventstore.redaction import describe_with_traceback

if TYPE_CHECKING:
    import asyncio

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

CORRELATION: ContextVar[str] = ContextVar("correlation_id")
"""The correlation id of the request being answered. Code that works for it elsewhere uses `log_extra`."""


def log_extra(correlation_id: str) -> dict[str, str]:
    """Return the `extra` that makes a log line part of a request."""
    return {"correlation_id": correlation_id}


def configure(log_format: LogFormat = "console", level: LogLevel = "info") -> None:
    """Send all log lines to stderr in one format."""
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
    # The driver and its pools log every lost connection themselves, in the server's words, which may quote
    # a row. The code that uses them logs it once.
    for name in ("psycopg", "psycopg.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def log_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that no code awaits; the event loop's default handler would show its text."""
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
        event["exception"] = describe_with_traceback(error)
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

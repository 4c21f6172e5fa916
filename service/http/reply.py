"""Complete JSON answers, sent in one write.

aiohttp's own response supports all of HTTP and takes about ten microseconds for it. Nearly every answer
here is complete JSON for an HTTP/1.1 client on a keep-alive connection. Its head is always the same except
for three lines, which are filled in here. In all other cases it is converted to an aiohttp response.
"""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import SERVER_SOFTWARE
from multidict import istr

from service.http import json
from service.http.problems import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.web_request import BaseRequest

SECURITY_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
    }
)
"""On every answer: do not cache it, render it as a page, or guess another content type."""

CORRELATION_HEADER = istr("X-Correlation-Id")

_CLOSE = "Connection: close\r\n"


class Reply:
    """An answer: status, headers and body.

    `correlation_id` is the request's; it must be visible ASCII.
    """

    __slots__ = ("body", "content_type", "correlation_id", "headers", "keep_alive", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = dict(headers) if headers else {}
        """Headers beyond those of every answer."""
        self.correlation_id = ""
        self.keep_alive = True

    def force_close(self) -> None:
        """Close the connection after this answer."""
        self.keep_alive = False

    def is_plain(self, request: BaseRequest) -> bool:
        """Return whether `in_one_piece` can answer this request."""
        return (
            self.keep_alive
            and not self.headers
            and request.keep_alive
            and request.version == HttpVersion11
            and request.method != hdrs.METH_HEAD
        )

    def in_one_piece(self) -> bytes:
        """Return head and body as HTTP/1.1, without `headers`."""
        head = (
            f"{_common_head(self.status, self.content_type)}"
            f"X-Correlation-Id: {self.correlation_id}\r\n"
            f"Date: {_date(int(time()))}\r\n"
            f"Content-Length: {len(self.body)}\r\n{'' if self.keep_alive else _CLOSE}\r\n"
        )
        return head.encode() + self.body

    def response(self) -> web.Response:
        """Return the same as an aiohttp response."""
        headers = {**SECURITY_HEADERS, "Content-Type": self.content_type, **self.headers}
        if self.correlation_id:
            headers[CORRELATION_HEADER] = self.correlation_id
        response = web.Response(status=self.status, body=self.body, headers=headers)
        if not self.keep_alive:
            response.force_close()
        return response


def respond(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a JSON answer; from status 400 on, a problem."""
    if status < HTTPStatus.BAD_REQUEST:
        return Reply(status, json.dumps(body), headers=headers)
    reply = Reply(status, json.dumps(body), CONTENT_TYPE, headers)
    if "retry_after_seconds" in body:
        reply.headers.setdefault("Retry-After", str(body["retry_after_seconds"]))
    return reply


@lru_cache
def _common_head(status: int, content_type: str) -> str:
    """Return the part of the head that all answers with this status and type share."""
    fields = {**SECURITY_HEADERS, "Content-Type": content_type, "Server": SERVER_SOFTWARE}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines) + "\r\n"


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)

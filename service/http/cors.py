"""CORS: web pages of other origins may use the API only if the settings name their origin.

A browser asks first (a preflight) and shows an answer to a page only if the answer names the page's origin.
An answer without these headers allows nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from aiohttp.web_request import BaseRequest

_ASKED_FOR = ", ".join(
    (
        "Authorization",
        "Content-Type",
        "Idempotency-Key",
        "Last-Event-ID",
        "X-Correlation-Id",
        "X-Request-Id",
    )
)
_SHOWN = ", ".join(("Idempotent-Replayed", "Retry-After", "WWW-Authenticate", "X-Correlation-Id"))
_PREFLIGHT_HOLDS_SECONDS = 600


class Cors:
    """The origins whose pages may use the API."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)

    def allow(self, request: BaseRequest, headers: MutableMapping[str, str]) -> None:
        """Add the headers that let the requesting page see the answer, if it may."""
        headers[hdrs.VARY] = hdrs.ORIGIN
        origin = request.headers.get(hdrs.ORIGIN)
        if origin in self._origins:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _SHOWN

    def preflight(self, request: BaseRequest, methods: Iterable[str]) -> web.Response | None:
        """Return the answer to an allowed preflight request; None for any other request."""
        asks = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if request.method != hdrs.METH_OPTIONS or not asks:
            return None
        if request.headers.get(hdrs.ORIGIN) not in self._origins:
            return None
        response = web.Response(status=204)
        self.allow(request, response.headers)
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ", ".join(sorted(methods))
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _ASKED_FOR
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(_PREFLIGHT_HOLDS_SECONDS)
        return response

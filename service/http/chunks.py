"""Answers that are sent in pieces, at the client's pace."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from service.http.context import correlation_id
from service.http.lists import PAGE_BYTES
from service.http.reply import CORRELATION_HEADER, SECURITY_HEADERS, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from service.http.context import Services

SEND_BYTES = 64 * 1024
SEND_SECONDS = 30.0
"""A client that does not read `SEND_BYTES` within this time is dropped."""


def start_response(
    services: Services, request: web.Request, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Return an answer to be sent in pieces, with these headers and those of every answer."""
    response = web.StreamResponse(
        headers={**SECURITY_HEADERS, **headers, CORRELATION_HEADER: correlation_id()}
    )
    if services.cors:
        services.cors.allow(request, response.headers)
    return response


async def send(response: web.StreamResponse, piece: bytes) -> None:
    """Send a piece of any size; return when there is room for the next.

    Raises:
        TimeoutError: the client did not read `SEND_BYTES` of it within `SEND_SECONDS`.
        ConnectionError: the client has disconnected.
    """
    for start in range(0, len(piece), SEND_BYTES):
        async with asyncio.timeout(SEND_SECONDS):
            await response.write(piece[start : start + SEND_BYTES])


async def respond_in_chunks(
    services: Services, request: web.Request, pieces: Iterable[bytes]
) -> web.StreamResponse:
    """Answer with 200 and JSON that is never in memory as a whole."""
    response = start_response(services, request, {"Content-Type": "application/json"})
    try:
        with suppress(ConnectionError):
            await response.prepare(request)
            for piece in pieces:
                await send(response, piece)
                # Making a piece takes time; let other tasks run.
                await asyncio.sleep(0)
            async with asyncio.timeout(SEND_SECONDS):
                await response.write_eof()
    except TimeoutError:
        # A client that reads nothing would not read the end either.
        if request.transport:
            request.transport.abort()
    return response


async def respond_long(
    services: Services, request: web.Request, make: Callable[[], dict[str, Any]]
) -> Reply | web.StreamResponse:
    """Send an answer that may be long (see `service.http.long_answers`); in pieces if it is very long."""
    body = await services.long.serialize(make)
    if len(body) <= PAGE_BYTES:
        return Reply(200, body)
    return await respond_in_chunks(services, request, (body,))

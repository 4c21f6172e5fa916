"""Compressed bodies: decompressed only when they are needed, and never beyond the size limit.

aiohttp would decompress them as they arrive, even for requests that were refused by their headers and whose
body is only drained. A megabyte can expand to a gigabyte, which blocks every other request for seconds.
"""

from __future__ import annotations

import zlib

from service.http.problems import Problem

_GZIP = 16 + zlib.MAX_WBITS
_ZLIB, _BARE_DEFLATE = zlib.MAX_WBITS, -zlib.MAX_WBITS
_IS_ZLIB = 8
"""The low half of the first byte in zlib's format, which is what `deflate` means in HTTP."""


def decompress(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Decompress a body.

    Args:
        body: the body as it was sent; not empty.
        coding: its Content-Encoding, in lower case.
        max_bytes: the maximum size of the content.

    Raises:
        Problem: the content is too large, incomplete or not in this encoding, or that is not supported.
    """
    match coding:
        case "identity":
            return body
        case "gzip" | "x-gzip":
            kind = _GZIP
        case "deflate":
            # Some clients send it without the zlib header.
            kind = _ZLIB if body[0] & 0x0F == _IS_ZLIB else _BARE_DEFLATE
        case _:
            raise Problem("unsupported_media_type", "Content-Encoding must be gzip, deflate or identity")
    unpacking = zlib.decompressobj(kind)
    try:
        content = unpacking.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise Problem("bad_request", "the body does not match its Content-Encoding") from error
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    if not unpacking.eof or unpacking.unused_data:
        raise Problem("bad_request", "the compressed body is truncated or followed by other data")
    return content


def too_large(max_bytes: int) -> Problem:
    """Return the problem for a body that is too large."""
    return Problem("payload_too_large", f"a body may have at most {max_bytes} bytes")

"""Bodies that come packed: unpacked only once they are wanted, and never to more than a body may have.

aiohttp would unpack them as they arrive, also those of requests that were refused by their head and are
only read to their end. A megabyte can hold a gigabyte, which takes seconds, and everybody else waits.
"""

from __future__ import annotations

import zlib

from service.http.problems import Problem

_GZIP = 16 + zlib.MAX_WBITS
_ZLIB, _BARE_DEFLATE = zlib.MAX_WBITS, -zlib.MAX_WBITS
_IS_ZLIB = 8
"""What the lower half of the first byte is in zlib's format, which is what `deflate` means in HTTP."""


def unpacked(body: bytes, coding: str, most_bytes: int) -> bytes:
    """What a body holds.

    Args:
        body: as it was sent; not empty.
        coding: its Content-Encoding, in lower case.
        most_bytes: how much it may hold.

    Raises:
        Problem: it holds more, is not encoded like that, broke off, or the encoding is not known here.
    """
    match coding:
        case "identity":
            return body
        case "gzip" | "x-gzip":
            kind = _GZIP
        case "deflate":
            # Some send it without the frame that belongs to it.
            kind = _ZLIB if body[0] & 0x0F == _IS_ZLIB else _BARE_DEFLATE
        case _:
            raise Problem("unsupported_media_type", "a body is packed with gzip or deflate, or not at all")
    unpacking = zlib.decompressobj(kind)
    try:
        content = unpacking.decompress(body, most_bytes + 1)
    except zlib.error as error:
        raise Problem("bad_request", "the body is not encoded as the headers say") from error
    if len(content) > most_bytes:
        raise too_large(most_bytes)
    if not unpacking.eof or unpacking.unused_data:
        raise Problem("bad_request", "the body ends before or after what is packed in it")
    return content


def too_large(most_bytes: int) -> Problem:
    """Says how large a body may be."""
    return Problem("payload_too_large", f"a body may have {most_bytes} bytes")

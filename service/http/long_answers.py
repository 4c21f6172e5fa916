"""Long answers from memory, serialized one at a time in short slices to keep the event loop responsive.

A squad can have hundreds of thousands of active operations, and listing all of them takes a second.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from service.http.json import dumps, dumps_if_complete
from service.lazy_rows import FEW, LazyRows

if TYPE_CHECKING:
    from collections.abc import Callable

_SLICE_SECONDS = 0.002
"""How long to work before yielding to the event loop. Checked every few rows, each of which can take a few
tenths of a millisecond."""


class LongAnswers:
    """Makes long answers take turns, so that ten of them delay other requests no more than one."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def serialize(self, make: Callable[[], dict[str, Any]]) -> bytes:
        """Serialize an answer.

        Args:
            make: returns the answer. Each `LazyRows` in it, also in nested objects, is expanded here.
        """
        async with self._lock:
            body = make()
            if (serialized := dumps_if_complete(body)) is not None:
                return serialized
            await asyncio.sleep(0)
        pieces: list[bytes] = []
        await self._write(body, pieces)
        return b"".join(pieces)

    async def _write(self, body: dict[str, Any], pieces: list[bytes]) -> None:
        before = b"{"
        for name, value in body.items():
            pieces += (before, dumps(name), b":")
            if type(value) is LazyRows:
                await self._write_rows(value, pieces)
            elif type(value) is dict:
                await self._write(value, pieces)
            else:
                pieces.append(dumps(value))
            before = b","
        pieces.append(b"}" if body else b"{}")

    async def _write_rows(self, many: LazyRows, pieces: list[bytes]) -> None:
        first, last = (b"[", b"]") if many.is_list else (b"{", b"}")
        pieces.append(first)
        start = 0
        while start < len(many):
            async with self._lock:
                until = monotonic() + _SLICE_SECONDS
                while start < len(many):
                    some = dumps(many.shown(start, start + FEW))
                    pieces += (b"," if start else b"", some[1:-1])
                    start += FEW
                    if monotonic() >= until:
                        break
                # Yield before releasing the turn, so that other requests run before the next long answer.
                await asyncio.sleep(0)
        pieces.append(last)


class Yielder:
    """Yields to the event loop from time to time during a long piece of work."""

    def __init__(self) -> None:
        self._until = monotonic() + _SLICE_SECONDS

    async def pause(self) -> None:
        """Yield if the current slice is used up."""
        if monotonic() >= self._until:
            await asyncio.sleep(0)
            self._until = monotonic() + _SLICE_SECONDS

"""Long answers from memory: written a little at a time, one after another, while others have their turn.

A squad can have hundreds of thousands of things under way, and to list all of them takes a second.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from service.http.json import dumps, dumps_what_is_made
from service.many import FEW, Many

if TYPE_CHECKING:
    from collections.abc import Callable

_SLICE_SECONDS = 0.002
"""After so long others have their turn. It is looked for after a few rows, each of which can take a few
tenths of a millisecond."""


class LongAnswers:
    """Has all answers that are long take turns, so that ten of them hold up the rest no more than one."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def written(self, make: Callable[[], dict[str, Any]]) -> bytes:
        """An answer as JSON.

        Args:
            make: gives it, with as many `Many` as it has, also in inner objects. They are made here.
        """
        async with self._turn:
            body = make()
            if (written := dumps_what_is_made(body)) is not None:
                return written
            await asyncio.sleep(0)
        pieces: list[bytes] = []
        await self._write(body, pieces)
        return b"".join(pieces)

    async def _write(self, body: dict[str, Any], pieces: list[bytes]) -> None:
        before = b"{"
        for name, value in body.items():
            pieces += (before, dumps(name), b":")
            if type(value) is Many:
                await self._write_rows(value, pieces)
            elif type(value) is dict:
                await self._write(value, pieces)
            else:
                pieces.append(dumps(value))
            before = b","
        pieces.append(b"}" if body else b"{}")

    async def _write_rows(self, many: Many, pieces: list[bytes]) -> None:
        first, last = (b"[", b"]") if many.is_list else (b"{", b"}")
        pieces.append(first)
        start = 0
        while start < len(many):
            async with self._turn:
                until = monotonic() + _SLICE_SECONDS
                while start < len(many):
                    some = dumps(many.shown(start, start + FEW))
                    pieces += (b"," if start else b"", some[1:-1])
                    start += FEW
                    if monotonic() >= until:
                        break
                # Nobody else's turn begins before everything else had its own.
                await asyncio.sleep(0)
        pieces.append(last)


class Pauses:
    """Gives others their turn in a long piece of work, once in a while."""

    def __init__(self) -> None:
        self._until = monotonic() + _SLICE_SECONDS

    async def pause(self) -> None:
        """Does so where it is time."""
        if monotonic() >= self._until:
            await asyncio.sleep(0)
            self._until = monotonic() + _SLICE_SECONDS

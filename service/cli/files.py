"""Files that commands write and read: whole or not at all, packed if named `.gz`, `-` for stdio."""

from __future__ import annotations

import asyncio
import gzip
import os
import secrets
import sys
import threading
import zlib
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from eventstore.exchange import LONGEST_LINE_BYTES
from service.database import StartFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

STANDARD = Path("-")
_PACKED = ".gz"
_PORTION_BYTES = 1024 * 1024
_PORTION_LINES = 2_000


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write: it bears its name only when all of it is written, and is removed if that fails.

    The name may end in `.gz`. What is no plain file, such as a pipe, is written as it comes.

    Raises:
        StartFailed: it cannot be written.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(_destination(path))
            if path.suffix == _PACKED:
                # Without name and time in it, the same content makes the same file.
                packed = gzip.GzipFile("", "wb", 6, file, mtime=0)
                file = cast("IO[bytes]", stack.enter_context(packed))
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StartFailed(f"cannot write {named(path, 'output')}: {error.strerror or error}") from error


@contextmanager
def _destination(path: Path) -> Iterator[IO[bytes]]:
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # What a link leads to is replaced, not the link.
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


async def lines(path: Path) -> AsyncIterator[list[bytes]]:
    """The lines of a file, in portions; a line that is too long comes cut off.

    Raises:
        StartFailed: it cannot be read.
    """
    reading: asyncio.Future[list[bytes]] | None = None
    file: IO[bytes] | None = None
    try:
        file = _opened(path)
        source = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if path.suffix == _PACKED else file
        while portion := await (reading := _in_a_thread(partial(_portion, source))):
            yield portion
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartFailed(f"cannot read {named(path, 'input')}: {reason}") from error
    finally:
        # Where a pipe keeps the thread waiting, closing would wait as well.
        if file is not None and (reading is None or (reading.done() and not reading.cancelled())):
            file.close()


def named(path: Path, direction: str) -> str:
    """What to call a file in a message: - is standard input, or output."""
    return f"standard {direction}" if path == STANDARD else str(path)


def _opened(path: Path) -> IO[bytes]:
    if path == STANDARD:
        # An object of our own: what a thread reads from is not for the interpreter to close.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    return path.open("rb")


def _in_a_thread(work: Callable[[], list[bytes]]) -> asyncio.Future[list[bytes]]:
    """Runs what may block in a thread that nobody has to wait for when the command is to end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[bytes]] = loop.create_future()

    def settle(portion: list[bytes], error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(portion)
        else:
            future.set_exception(error)

    def run() -> None:
        portion: list[bytes] = []
        error: Exception | None = None
        try:
            portion = work()
        except Exception as caught:  # noqa: BLE001 - it is raised where the portion is waited for
            error = caught
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, portion, error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _portion(file: IO[bytes]) -> list[bytes]:
    portion: list[bytes] = []
    size = 0
    while size < _PORTION_BYTES and len(portion) < _PORTION_LINES:
        line = file.readline(LONGEST_LINE_BYTES + 1)
        if not line:
            break
        portion.append(line)
        size += len(line)
    return portion

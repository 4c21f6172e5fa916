"""Files that commands read and write: atomically, compressed if named `.gz`, `-` for stdin or stdout."""

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

from eventstore.exchange import MAX_LINE_BYTES
from service.database import StartFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

STANDARD = Path("-")
_COMPRESSED_SUFFIX = ".gz"
_CHUNK_BYTES = 1024 * 1024
_CHUNK_LINES = 2_000


@contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write. It gets its name only once it is complete, and is removed if that fails.

    The name may end in `.gz`. Anything but a regular file, such as a pipe, is written directly.

    Raises:
        StartFailed: it cannot be written.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(_open_destination(path))
            if path.suffix == _COMPRESSED_SUFFIX:
                # Without name and time in the header, the same content gives the same file.
                compressed = gzip.GzipFile("", "wb", 6, file, mtime=0)
                file = cast("IO[bytes]", stack.enter_context(compressed))
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StartFailed(
            f"cannot write {display_name(path, 'output')}: {error.strerror or error}"
        ) from error


@contextmanager
def _open_destination(path: Path) -> Iterator[IO[bytes]]:
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # Replace what a symbolic link points to, not the link.
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


async def read_lines(path: Path) -> AsyncIterator[list[bytes]]:
    """Yield the lines of a file, in portions; a line that is too long is truncated.

    Raises:
        StartFailed: it cannot be read.
    """
    reading: asyncio.Future[list[bytes]] | None = None
    file: IO[bytes] | None = None
    try:
        file = _open_input(path)
        source = (
            cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if path.suffix == _COMPRESSED_SUFFIX else file
        )
        while chunk := await (reading := _run_in_thread(partial(_read_chunk, source))):
            yield chunk
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartFailed(f"cannot read {display_name(path, 'input')}: {reason}") from error
    finally:
        # While a pipe blocks the thread, closing would block as well.
        if file is not None and (reading is None or (reading.done() and not reading.cancelled())):
            file.close()


def display_name(path: Path, direction: str) -> str:
    """Return a file's name for messages: - is standard input or output."""
    return f"standard {direction}" if path == STANDARD else str(path)


def _open_input(path: Path) -> IO[bytes]:
    if path == STANDARD:
        # A separate file object, because the interpreter must not close what a thread is reading from.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    return path.open("rb")


def _run_in_thread(work: Callable[[], list[bytes]]) -> asyncio.Future[list[bytes]]:
    """Run what may block in a thread that need not be waited for when the command ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[bytes]] = loop.create_future()

    def settle(chunk: list[bytes], error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(chunk)
        else:
            future.set_exception(error)

    def run() -> None:
        chunk: list[bytes] = []
        error: Exception | None = None
        try:
            chunk = work()
        except Exception as caught:  # noqa: BLE001 - it is raised where the portion is awaited
            error = caught
        with suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
            loop.call_soon_threadsafe(settle, chunk, error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _read_chunk(file: IO[bytes]) -> list[bytes]:
    chunk: list[bytes] = []
    size = 0
    while size < _CHUNK_BYTES and len(chunk) < _CHUNK_LINES:
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            break
        chunk.append(line)
        size += len(line)
    return chunk

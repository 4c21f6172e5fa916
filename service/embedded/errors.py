"""Errors of the embedded Postgres, with messages for the user."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REASONS = {
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "the disk quota is exhausted",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user has no permission",
    errno.EPERM: "this user has no permission",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EEXIST: "it is not a folder",
}


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot be used; the message is one line for the user."""


@contextlib.contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn system errors into an `EmbeddedPostgresError` about the folder."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        place = error.filename or folder
        raise EmbeddedPostgresError(f"the embedded Postgres cannot use {place}: {reason}") from error
    except subprocess.TimeoutExpired as error:
        program = error.cmd[0].name
        raise EmbeddedPostgresError(
            f"the embedded Postgres in {folder}: {program} did not finish within {error.timeout:g} s"
        ) from error


def complaint(output: str) -> str:
    """Return the line of a Postgres program's output that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        for mark in ("PANIC:", "FATAL:", "error:"):
            _, found, message = line.partition(mark)
            if found:
                return message.strip()
    return lines[-1] if lines else "no reason was given"

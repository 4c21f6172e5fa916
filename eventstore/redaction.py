"""Describe exceptions for log lines: enough to find the fault, and nothing that a client sent.

The text of an exception may repeat its input: a row that violates a constraint, a value that is not a
number, a key that is missing. So only the texts of our own exceptions and of the operating system's are
logged; of a database error, its SQLSTATE and the names it refers to; of any other, only its type.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import psycopg

from eventstore.errors import AtPosition, EventStoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_CAUSES = 10


def describe(error: BaseException | None) -> str:
    """Return an exception in a few words."""
    if error is None:
        return "no reason was given"
    name = type(error).__name__
    match error:
        case AtPosition():
            return f"{name} at position {error.position}"
        case psycopg.Error():
            named = [error.diag.constraint_name, error.diag.table_name, error.diag.column_name]
            return " ".join([name, f"({error.sqlstate or 'no code'})", *filter(None, named)])
        case EventStoreError() | OSError() if str(error):
            return f"{name}: {error}"
        case _:
            return name


def describe_with_traceback(error: BaseException) -> str:
    """Return an exception and its causes with their tracebacks, without the values that they dealt with."""
    return "\n".join(_lines(error))


def _lines(error: BaseException) -> Iterator[str]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain and len(chain) < _MAX_CAUSES:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    for each in reversed(chain):
        yield from "".join(traceback.format_list(traceback.extract_tb(each.__traceback__))).splitlines()
        yield describe(each)

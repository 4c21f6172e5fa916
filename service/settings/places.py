"""The types of settings that name a database, file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import psycopg
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from pydantic import AfterValidator, BeforeValidator

from service.settings.errors import may_hold_a_password


def _check_dsn(dsn: str) -> str:
    if not dsn.strip():
        # For example from an unset shell variable. It must not silently mean the embedded Postgres.
        raise ValueError("must name a database")
    try:
        timeout_from_conninfo(conninfo_to_dict(dsn))
    except UnicodeEncodeError as error:
        raise ValueError("must be UTF-8") from error
    except psycopg.ProgrammingError as error:
        # The library's message quotes what it could not parse.
        what = "" if may_hold_a_password(dsn) else f": {str(error).strip()}"
        raise ValueError(f"must be a libpq connection string or URI{what}") from error
    return dsn


Dsn = Annotated[str, AfterValidator(_check_dsn)]
"""A database, as a libpq connection string or URI."""


def _named(path: object) -> object:
    if path == "":
        raise ValueError("must name a file or folder")
    return path


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError("must not begin with the home folder of an unknown user") from error


File = Annotated[Path, BeforeValidator(_named), AfterValidator(_at_home)]
"""A file or folder; ~ is expanded as in a shell."""

"""Where things are, as a setting names it: a database, a file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import psycopg
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from pydantic import AfterValidator, BeforeValidator

from service.settings.wrong import may_hold_a_password


def _check_dsn(dsn: str) -> str:
    if not dsn.strip():
        # As of a shell's variable that is not set. Nobody means the embedded Postgres by it.
        raise ValueError("must name a database")
    try:
        timeout_from_conninfo(conninfo_to_dict(dsn))
    except UnicodeEncodeError as error:
        raise ValueError("must be UTF-8") from error
    except psycopg.ProgrammingError as error:
        # The library repeats what it could not read.
        what = "" if may_hold_a_password(dsn) else f": {str(error).strip()}"
        raise ValueError(f"must be a libpq connection string or URI{what}") from error
    return dsn


Dsn = Annotated[str, AfterValidator(_check_dsn)]
"""Where a database is, in libpq's words."""


def _named(path: object) -> object:
    if path == "":
        raise ValueError("must name a file or folder")
    return path


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError("must not begin with the home folder of nobody") from error


File = Annotated[Path, BeforeValidator(_named), AfterValidator(_at_home)]
"""A file or folder; ~ is one's home folder, as in a shell."""

"""The script and the queries that docs/audit.md provides for auditing without this software."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventstore.connection import Connection

DOCS = Path(__file__).parent.parent.parent / "docs"
VERIFIER = DOCS / "verify_export.py"


def documented_query() -> str:
    """The query in docs/audit.md that verifies the log."""
    [query] = _sql_in("### Checking in SQL")
    return query


def query_for_what_followed(position: int) -> str:
    """The query in docs/audit.md for everything that followed from an event, for the one at `position`."""
    [query] = _sql_in("## Why it happened")
    assert query.count("SELECT 40::bigint") == 1
    return query.replace("SELECT 40::bigint", f"SELECT {position}::bigint")


def sql_for_restored_keys() -> str:
    """The statements in docs/audit.md for destroyed keys that a restored backup has brought back."""
    [statements] = _sql_in("### What it promises, and what it does not")
    return statements


def queries_for_questions() -> list[str]:
    """The queries in docs/audit.md that answer usual questions."""
    return _sql_in("## Questions")


def _sql_in(heading: str) -> list[str]:
    """The SQL in a section."""
    _, _, rest = (DOCS / "audit.md").read_text().partition(f"\n{heading}\n")
    section = re.split(r"^##+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^ *```sql$(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)


async def first_bad_position_by_sql(connection: Connection) -> int | None:
    """The first position at which the documented query finds a problem, or None."""
    row = await (await connection.execute(documented_query().encode())).fetchone()
    return row[0] if row else None


def verify_in_plain_python(file: Path, *checkpoint: str) -> tuple[int, str]:
    """The exit code and output of docs/verify_export.py for a file, on a Python without our packages.

    Args:
        file: the export.
        checkpoint: its position and its hash, if there is one.
    """
    command = [sys.executable, "-I", "-S", str(VERIFIER), str(file), *checkpoint]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr

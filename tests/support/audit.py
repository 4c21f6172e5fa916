"""What docs/audit.md offers for auditing without this software: a script, and a query."""

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


def sql_of_the_docs() -> str:
    """The query that docs/audit.md shows."""
    return _sql_in(r"^```sql$(.*?)^```$")


def sql_for_keys_that_came_back() -> str:
    """The statements in docs/audit.md for when a destroyed key is there again."""
    return _sql_in(r"^  ```sql$(.*?)^  ```$")


def _sql_in(fence: str) -> str:
    [query] = re.findall(fence, (DOCS / "audit.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(query)


async def first_bad_position_by_sql(connection: Connection) -> int | None:
    """The result of that query."""
    row = await (await connection.execute(sql_of_the_docs().encode())).fetchone()
    return row[0] if row else None


def verdict_in_plain_python(file: Path) -> tuple[int, str]:
    """The exit code and output of docs/verify_export.py for a file, on a Python without our packages."""
    command = [sys.executable, "-I", "-S", str(VERIFIER), str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr

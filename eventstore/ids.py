"""The format of ids: UUIDs in lower case."""

from __future__ import annotations

import re

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

NIL = "00000000-0000-0000-0000-000000000000"
"""An id that nothing has; it sorts before all others."""

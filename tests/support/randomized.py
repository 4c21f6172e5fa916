"""How many random examples a property is tried with: few in every run, as each run tries others."""

from __future__ import annotations

import os

from hypothesis import settings

_FACTOR = float(os.environ.get("SQUAD_TEST_EXAMPLES", "1"))
"""``SQUAD_TEST_EXAMPLES=20 make test ARGS=tests/unit`` tries twenty times as many."""


def examples(number: int) -> settings:
    """Return the decorator for a test with about this many random examples."""
    return settings(max_examples=max(1, round(number * _FACTOR)), deadline=None)

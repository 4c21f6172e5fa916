"""`squad` whose projector ignores its lock: `python tests/support/unlocked_projector.py up ...`.

With it, two projectors are active at once, as when the lock is lost silently.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = (sys.executable, str(Path(__file__).resolve()))
"""The script to run in place of `squad`."""


def main() -> None:
    """Run the command line with this projector."""
    from projections import projector

    projector._TRY_LOCK = "SELECT true"
    from service.cli import main as squad

    squad()


if __name__ == "__main__":
    main()

"""`squad` whose projector never asks whether another one is active: `python tests/support/pushy.py up ...`.

So do two of the same name, where the lock between them was lost without a word.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = (sys.executable, str(Path(__file__).resolve()))
"""To be run in the place of `squad`."""


def main() -> None:
    """Runs the command line with this projector."""
    from projections import projector

    projector._TRY_LOCK = "SELECT true"
    from service.cli import main as squad

    squad()


if __name__ == "__main__":
    main()

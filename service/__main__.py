"""The entry point of `squad` and `python -m service`: load what the command needs, and run it."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command; see `service.cli.main`."""
    # Everything imported stays alive; garbage collection would take a tenth of the import time.
    gc.disable()
    try:
        from service.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    gc.freeze()
    gc.enable()
    run()


if __name__ == "__main__":
    main()

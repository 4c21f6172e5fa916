"""The way in, for `squad` and for `python -m service`: loads what the command needs, and runs it."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Runs the command; see `service.cli.main`."""
    # All that is loaded stays. Looking through it for garbage takes a tenth of the time until it is there.
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

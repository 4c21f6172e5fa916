"""What-if: the recorded history judged under another policy.

`judge` reads a log page by page, judges every request in it again, and reports which would have been
refused instead of allowed, and which allowed instead of refused. All but the reader is pure. The log is
streamed; only what is active at a time is kept in memory. Under unchanged rules it finds no difference in
any log, which a property test checks on random histories.
"""

from __future__ import annotations

from service.whatif.report import Report, shown
from service.whatif.rules import OtherRules
from service.whatif.simulation import Simulation

__all__ = ["OtherRules", "Report", "Simulation", "shown"]

"""Under another policy: the same history, judged by other rules.

`judge` reads a log page by page, judges every request in it again, and says which would have been refused
instead of allowed, and which allowed instead of refused. All of it is pure but for the reader; it streams,
and keeps no more in memory than what was active at a time. With rules that differ in nothing it finds no
difference in any log: a test holds it to that with histories made up at random.
"""

from __future__ import annotations

from service.whatif.report import Report, shown
from service.whatif.rules import OtherRules
from service.whatif.simulation import Simulation

__all__ = ["OtherRules", "Report", "Simulation", "shown"]

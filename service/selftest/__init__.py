"""`squad bench`: what to expect of a squad on this machine and this database, in half a minute.

It works in a schema of its own, which it removes, and is bounded in time and in what it writes. It measures
what a user would otherwise have to guess: the round trip to the database, a durable commit, a notification,
commands by number of concurrent callers, and how long an event takes to show in the tables. `judge` says
which of them is the bottleneck.
"""

from service.selftest.judgement import judge
from service.selftest.measurements import Figures, Latency, Rate, run

__all__ = ["Figures", "Latency", "Rate", "judge", "run"]

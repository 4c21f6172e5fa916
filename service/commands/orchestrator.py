"""Commands about the orchestrator itself."""

from __future__ import annotations

from typing import Literal

from service.commands.base import Command


class StartOrchestrator(Command):
    """Start running jobs and calling agents."""

    only_if_new: bool = False
    """Do nothing if the orchestrator was ever started or stopped before."""


class StopOrchestrator(Command):
    """Stop running jobs and calling agents."""


class PassTime(Command):
    """Request the time-driven events that are due: expiries, a new budget day, agents gone idle."""

    kind: Literal["clock"] = "clock"

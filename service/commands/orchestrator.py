"""What can be asked of the orchestrator itself."""

from __future__ import annotations

from typing import Literal

from service.commands.base import Command


class StartOrchestrator(Command):
    """Let jobs fire and agents be called."""

    only_if_new: bool = False
    """Do nothing where the orchestrator was ever started or stopped before."""


class StopOrchestrator(Command):
    """Let no job fire and no agent be called."""


class PassTime(Command):
    """Let happen what the clock makes happen: expiry, a new budget day, agents gone quiet."""

    kind: Literal["clock"] = "clock"

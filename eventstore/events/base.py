"""What every event has in common."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

ERASED = "(erased)"
"""Stands for a text that nobody can read any more. No sender is called that."""


class Event(BaseModel):
    """One fact. Its `type` names it in the log; its `stream` says whose history it belongs to."""

    # What is personal in an event must not get into log lines by way of an exception's text.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: ClassVar[str]
    schema_version: ClassVar[int] = 1

    @property
    def stream(self) -> str:
        """The stream that the event belongs to, such as `operation-<id>`."""
        raise NotImplementedError

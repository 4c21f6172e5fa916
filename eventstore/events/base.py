"""What every event has in common."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

ERASED = "(erased)"
"""Stands for a text that nobody can read any more. No sender is called that."""


class Event(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One fact. Its `type` names it in the log; its `stream` says whose history it belongs to.

    What it holds is looked at where it comes from outside: what somebody asks for becomes a command first
    (`service.commands`), and what is in the log is decoded (`eventstore.codec`). In between a type checker
    has the word: an event is made for every command, and read for every row.
    """

    type: ClassVar[str]
    schema_version: ClassVar[int] = 1

    @property
    def stream(self) -> str:
        """The stream that the event belongs to, such as `operation-<id>`."""
        raise NotImplementedError

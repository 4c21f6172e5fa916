"""The base class of all events."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

ERASED = "(erased)"
"""Replaces a text whose key was destroyed. It is not a possible sender."""


class Event(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A fact. Its `type` is its name in the log; its `stream` is the history that it belongs to.

    Values are validated where they enter: a request as a command (`service.commands`), a row of the log
    when it is decoded (`eventstore.codec`). In between, static type checking has to do: an event is created
    for every command and for every row that is read.
    """

    type: ClassVar[str]
    schema_version: ClassVar[int] = 1

    @property
    def stream(self) -> str:
        """The stream that the event belongs to, such as `operation-<id>`."""
        raise NotImplementedError

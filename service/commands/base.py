"""What every command has in common."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict

from service.documented import Documented

UNCONDITIONAL = 0
"""The `if_position` of a change without a condition. No event has this position."""


class Command(Documented):
    """An intent."""

    # Personal data in a command must not reach log lines through an exception's text.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
    )

    personal: ClassVar[frozenset[str]] = frozenset()
    """The fields that can hold personal data."""

    @property
    def acting_agent(self) -> str | None:
        """The agent that gives the command, if it names one."""
        return getattr(self, "agent", None)


def named_fields(command: Command, *but: str) -> dict[str, Any]:
    """Return the fields that were set explicitly, except those in `but`."""
    return {name: getattr(command, name) for name in command.model_fields_set if name not in but}
